"""Flower as a border: the engine on its Grid, messages on its wire, our strategies in its ServerApp."""
