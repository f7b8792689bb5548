from __future__ import annotations

import orjson

import art_core as art

STEP = {
    "costs/gpu": 1.0,
    "costs/train/sample": 0.5,
    "costs/all": 1.5,
    "costs/cum/gpu": 1.0,
    "costs/cum/train/sample": 0.5,
    "costs/cum/train": 0.5,
    "costs/cum/all": 1.5,
}
SAMPLED = {"leaf": "costs/train/sample", "item": "m", "provider": "cloud", "usd": 0.5}


class Cloud:
    """A plugin whose service billed a little more than was estimated, and storage on top."""

    def __init__(self):
        self.asked = []

    def bill(self, run_dir):
        self.asked.append(run_dir)
        usd = {"train/sample": 0.52, "train/storage": 0.01}
        return art.Bill(usd=usd, notes=("usage until noon",))

    @art.hookimpl
    def art_backends(self):
        return [
            art.BackendSpec(name="cloud", create=dict, summary="billed", bill=self.bill),
            art.BackendSpec(name="near", create=dict, summary="free"),
        ]


def a_run(shelf, *receipts):
    directory = shelf.run("a", STEP)
    log = directory / "history.jsonl"
    log.write_bytes(orjson.dumps(orjson.loads(log.read_bytes()) | {"_receipts": receipts}) + b"\n")
    return directory


def test_the_estimate_stands_beside_the_bill(shelf, art_command):
    cloud, directory = Cloud(), a_run(shelf, SAMPLED)
    printed = art_command("costs", "a", "--reconcile", plugins={"cloud": cloud})
    assert printed.splitlines() == [
        "demo/a at cloud  estimate $  billed $  difference",
        "train/sample       0.500000  0.520000   +0.020000",
        "train/storage      0.000000  0.010000   +0.010000",
        "all                0.500000  0.530000   +0.030000",
        "usage until noon",
    ]
    assert cloud.asked == [directory]


def test_a_run_that_paid_no_service_that_tells_its_bill_is_an_error(shelf, art_error):
    a_run(shelf, SAMPLED | {"provider": "acme"})
    error = art_error("costs", "a", "--reconcile", plugins={"cloud": Cloud()})
    assert "demo/a" in error and "(used: acme; services that do: cloud)" in error
    assert "none is installed" in art_error("costs", "a", "--reconcile")
