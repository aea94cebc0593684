"""scikit-learn's embedded tables, read from its files, because importing scikit-learn takes half of a run's start."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from fedkd.data.user_data import Data, held_out
from fedkd.errors import DataError

_FILES = {  # each begins with a line: number of rows, number of features, names of the classes
    "breast-cancer": ("breast_cancer.csv", "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"),
    "wine": ("wine_data.csv", "10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede"),
}
NAMES = tuple(_FILES)
_TEST_SHARE = 0.2


def read(name: str) -> Data:
    """A table: float features, and every fifth row of each class as a test sample. Raises DataError."""
    file, sha256 = _FILES[name]
    spec = importlib.util.find_spec("sklearn")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise DataError(f"{name} comes with scikit-learn, which is not installed", mend="pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / file
    mend = "reinstall it: pip install --force-reinstall scikit-learn"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error}", where=str(path), mend=mend) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{name} is not the table that scikit-learn publishes", where=str(path), mend=mend)
    head, *lines = content.decode("ascii").splitlines()
    rows = np.loadtxt(lines, delimiter=",")
    x, y = rows[:, :-1], rows[:, -1].astype(np.int64)
    is_test = held_out(y, _TEST_SHARE)
    return Data(train=(x[~is_test], y[~is_test]), test=(x[is_test], y[is_test]), labels=head.split(",")[2:])
