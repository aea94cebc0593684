import pytest

from simulations.system import redacted


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (
            ["flwr-serverapp", "--token", "s3cret", "--run-id", "7"],
            ["flwr-serverapp", "--token", "***", "--run-id", "7"],
        ),
        (["--auth-token=s3cret", "API_KEY=s3cret"], ["--auth-token=***", "API_KEY=***"]),
        (["--superlink-password", "--s3cret", "x"], ["--superlink-password", "***", "x"]),
        (["--log", "https://me:s3cret@host/x"], ["--log", "https://***@host/x"]),
        (
            ["fedkd", "run", "strategy=fedgen", "--name", "token"],
            ["fedkd", "run", "strategy=fedgen", "--name", "token"],
        ),
        (["--token"], ["--token"]),
    ],
)
def test_the_values_of_secrets_are_hidden_and_nothing_else(words, kept):
    assert redacted.command(words) == kept
