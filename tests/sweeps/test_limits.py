"""What the cluster says of its own limits."""

import pytest

from rundir import ClusterError
from sweeps.cluster import limits
from sweeps.cluster.limits import read_limits


@pytest.fixture
def configured(monkeypatch):
    """Have scontrol tell of a configuration."""

    def tell(array_size: int, parameters: str) -> None:
        text = (
            f"MaxArraySize = {array_size}\nMaxJobCount = 99\nSchedulerParameters = {parameters}\n"
        )
        monkeypatch.setattr(limits, "ask", lambda *_: text)

    return tell


@pytest.mark.parametrize(
    ("parameters", "most"),
    [("(null)", 1001), ("bf_max=3,max_array_tasks=7", 7), ("max_array_tasks=5000", 1001)],
)
def test_promise_06_an_array_is_as_large_as_the_lower_of_two_limits(configured, parameters, most):
    configured(1001, parameters)
    assert read_limits().array_size == most


def test_a_cluster_without_job_arrays_is_refused_in_words(configured):
    configured(0, "(null)")
    with pytest.raises(ClusterError, match=r"^MaxArraySize = 0: this cluster takes no job arrays"):
        read_limits()
