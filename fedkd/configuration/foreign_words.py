"""Keys and options of other federated learning platforms, with their names here, for hints."""

_KEYS = {  # what to write here -> keys of other platforms
    "students=NAME   fedkd list students": "model net network arch architecture student model_name",
    "train.batch=N": "batch_size batchsize bs local_batch_size train_batch_size",
    "train.lr=X": "learning_rate local_lr eta",
    "train.optimiser=sgd, adam, ...": "optimizer optim",
    "train.epochs=N train.steps=null": "epochs local_epochs num_epochs num_local_epochs local_ep",
    "train.steps=N": "num_steps local_steps local_iterations",
    "train.weight_decay=X": "wd l2",
    "data=NAME   fedkd list data": "dataset data_set dataset_name data_name",
    "partition=NAME   fedkd list partitions": "split partitioner distribution iid noniid non_iid",
    "rounds=N": "num_rounds n_rounds comm_rounds communication_rounds global_rounds global_epochs num_server_rounds",
    "clients=N": "num_clients n_clients num_users num_parties parties users num_partitions num_supernodes",
    "clients_per_round=N, a number and no share": (
        "fraction fraction_fit fraction_train frac client_fraction sample_fraction participation join_ratio "
        "participation_rate sampling_rate"
    ),
    "strategy=NAME   fedkd list strategies": "algorithm algo method aggregator aggregation fl_algorithm",
    "proxy=NAME   fedkd list proxies": "public public_set public_data public_dataset proxy_data",
    "seed=N": "random_seed random_state manual_seed",
    "engine=ray engine.workers=N": "num_workers n_jobs processes num_cpus cpus",
    "engine.deadline=SECONDS": "timeout round_timeout",
    "evaluate.every=N": "eval_every eval_interval test_every",
    "nothing: students are trained on the CPU": "device gpu gpus cuda num_gpus accelerator",
    "--out DIR": "output output_dir out save_dir log_dir results_dir",
    "--name NAME": "run_name exp_name experiment_name experiment",
}
_OPTIONS = {  # our option -> its names elsewhere
    "dirichlet": "noniid non-iid non_iid niid dir lda label_skew labeldir",
    "shards": "pathological",
    "flower-fedavgm": "fedavgm",
    "flower-fedadam": "fedadam fedopt",
    "flower-krum": "krum",
    "flower-trimmed": "fedtrimmedavg trimmed_mean trimmed-mean",
    "fedrep": "fedper",
    "centralised": "centralized central",
    "local": "standalone",
    "held-out": "public",
}
_BY_WORD = {word: mend for mend, words in _KEYS.items() for word in words.split()}

_BY_OPTION = {word: option for option, words in _OPTIONS.items() for word in words.split()}


def option(word: str) -> str:
    """Our name of another platform's option; empty if the word is unknown."""
    return _BY_OPTION.get(word.lower(), "")


def hint(word: str) -> str:
    """How to write another platform's key here, as `write train.batch=N`; empty if the word is unknown."""
    mend = _BY_WORD.get(word.strip("-").replace("-", "_").lower(), "")
    return f"write {mend}" if mend else ""
