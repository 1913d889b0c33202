import sqlite3
from pathlib import Path

import numpy as np
import pytest

from cesped_stream.errors import InvalidSettingsError, PermanentError
from cesped_stream_service.ledger import GIVEN, PREDICT, Ledger, Run, ShardRecord
from cesped_stream_service.session import refuse_network_file_system


def opened(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite", step=lambda name: None)


def put_batch(ledger: Ledger, batch_id: int, num_rows: int, kind: str = PREDICT) -> None:
    ledger.execute(
        "INSERT INTO batches VALUES(?, 1, ?, ?, 0, 0, 0.0, '', 0, 0, ?, ?, x'')",
        (batch_id, num_rows, kind, b"12345678" * num_rows, b"1" * num_rows),
    )


def test_a_particle_takes_less_than_200_bytes(tmp_path: Path) -> None:
    """7.2 million are to stay under 1.5 GB: 208 bytes each. Ingest and commit as the coordinator does, in batches of
    one micrograph."""
    ledger = opened(tmp_path)
    rows, batches = 300, 100
    digests = np.random.default_rng(0).bytes(16 * rows)
    for batch_id in range(1, batches + 1):
        with ledger.transaction("rows accepted"):
            stack = ledger.stack_id(f"/data/session/Extract/job042/Movies/FoilHole_{batch_id:08d}_data.mrcs", (1, 2, 3))
            put_batch(ledger, batch_id, rows)
            ledger.executemany(
                "INSERT INTO particles VALUES(?, ?, ?, ?)", [(stack, k, batch_id, k) for k in range(rows)]
            )
        with ledger.transaction("commit"):
            ledger.put_runs(
                [Run(batch_id, k, 60, 1 + batch_id // 160, k, "i2s-0123456789ab") for k in range(0, 300, 60)]
            )
            for k in range(0, 300, 60):
                ledger.execute("INSERT INTO digests VALUES(?, ?, ?)", (batch_id, k, digests[16 * k : 16 * k + 960]))
                ledger.execute("INSERT INTO leases VALUES(NULL, 64, 1.5, 1, 'worker 1 on some.host', 0.5)")
    ledger.close()
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 40 < size / (rows * batches) < 200


def test_a_row_cannot_be_committed_twice(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with ledger.transaction("t"):
        put_batch(ledger, 1, 10)
        ledger.put_runs([Run(1, 2, 4, 1, 0, "c")])
    for first, many in ((2, 4), (0, 3), (5, 1), (3, 1), (0, 10)):
        with pytest.raises(AssertionError, match="twice"), ledger.transaction("t"):
            ledger.put_runs([Run(1, first, many, 1, 9, "c")])
    assert ledger.open_rows(1) == [(0, 2), (6, 4)]
    ledger.close()


def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with pytest.raises(ZeroDivisionError), ledger.transaction("t"):
        ledger.put_shard(ShardRecord(1, "open", 0, 5, "x"))
        raise ZeroDivisionError
    assert ledger.shards() == []
    ledger.close()


def test_writes_are_synchronous_in_a_write_ahead_log(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger.execute("PRAGMA synchronous").fetchone() == (2,)
    ledger.close()


def test_lease_ids_are_never_given_twice(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    first = ledger.reserve_lease_ids(1000)
    ledger.close()
    ledger = opened(tmp_path)
    assert ledger.reserve_lease_ids(1000) == first + 1000
    ledger.close()


def test_a_batch_is_open_until_its_rows_are_committed_or_quarantined(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with ledger.transaction("t"):
        put_batch(ledger, 1, 6, GIVEN)
        ledger.put_runs([Run(1, 0, 4, 1, 0, "c")])
        ledger.mark_complete([1])
    assert ledger.open_batches() == [1]
    with ledger.transaction("t"):
        ledger.execute("INSERT INTO quarantined VALUES(1, 4, 2, 'why')")
        ledger.mark_complete([1])
    assert ledger.open_batches() == []
    with ledger.transaction("t"):
        ledger.give_back_place(1)
    assert ledger.open_batches() == [1] and ledger.open_rows(1) == [(0, 4)]
    ledger.close()


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    sql = sqlite3.connect(tmp_path / "ledger.sqlite")
    sql.execute("PRAGMA user_version=99")
    sql.close()
    with pytest.raises(PermanentError, match="version 99"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "lustre", "gpfs", "fuse.sshfs"])
def test_a_network_file_system_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path!s} {kind} rw 0 0\n"
    with pytest.raises(InvalidSettingsError, match=f"a {kind} network file system"):
        refuse_network_file_system(tmp_path / "state", mounts)
    refuse_network_file_system(tmp_path.parent, mounts)
    refuse_network_file_system(tmp_path / "state", mounts + f"/dev/vdb {tmp_path}/state xfs rw 0 0\n")
