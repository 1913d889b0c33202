from pathlib import Path

import pytest

from cesped_stream.errors import InvalidSettingsError, UnreachableFileError
from cesped_stream.export.star import export_star
from cesped_stream.particles.star import read_star

OPTICS = {
    "A": "_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnVoltage #3\n_rlnImagePixelSize #4\n{a} {n} 300.0 1.5\n",
    "B": "_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnImagePixelSize #3\n_rlnVoltage #4\n{a} {n} 1.5 200.0\n",
}


def write_shard(folder: Path, name: str, rows: list[str], optics: str, labels: tuple[str, ...] = ()) -> None:
    folder.mkdir(exist_ok=True)
    names = ("rlnImageName", "rlnAngleRot", *labels, "rlnOpticsGroup")
    head = "\n".join(f"_{label} #{k + 1}" for k, label in enumerate(names))
    block = OPTICS[optics].format(a=f"group{optics}", n=1)
    body = "\n".join(" ".join([image, "1.5", *("2.5" for _ in labels), "1"]) for image in rows)
    (folder / name).write_text(f"\ndata_optics\n\nloop_\n{block}\n\ndata_particles\n\nloop_\n{head}\n{body}\n\n")


def test_rows_are_sorted_by_stack_and_index_with_one_set_of_columns_and_optics(tmp_path: Path) -> None:
    poses = tmp_path / "poses"
    write_shard(poses, "poses_000001.star", ["000010@b.mrcs", "000002@b.mrcs"], "B", ("rlnNormCorrection",))
    write_shard(poses, "poses.star", ["000001@c.mrcs", "000003@a.mrcs"], "A")
    write_shard(poses, "unposed.star", ["000009@a.mrcs"], "A")
    phases: list[tuple[str, int]] = []
    paths = export_star(poses, tmp_path / "all.star", on_progress=lambda phase, rows: phases.append((phase, rows)))
    assert [path.name for path in paths] == ["all.star", "all_unposed.star"]
    table = read_star(paths[0])
    assert table.column("rlnImageName") == ["000003@a.mrcs", "000002@b.mrcs", "000010@b.mrcs", "000001@c.mrcs"]
    assert table.column("rlnNormCorrection") == ["1.000000", "2.5", "2.5", "1.000000"]
    assert [table.optics[k].name for k in table.optics_index] == ["groupA", "groupB", "groupB", "groupA"]
    assert read_star(paths[1]).column("rlnImageName") == ["000009@a.mrcs"]
    assert ("read", 4) in phases and ("written", 4) in phases


def test_the_bytes_do_not_depend_on_how_rows_lie_in_shards_or_how_many_fit_in_memory(tmp_path: Path) -> None:
    images = [f"{k:06d}@{stack}.mrcs" for stack in "xyz" for k in (1, 2, 30, 4)]
    write_shard(tmp_path / "one", "poses.star", images, "A")
    for k in range(4):
        write_shard(tmp_path / "many", f"poses_{k + 1:06d}.star", images[k::4], "A")
    first = export_star(tmp_path / "one", tmp_path / "one.star")[0].read_bytes()
    for rows_per_run in (1, 2, 5, 100):
        path = export_star(tmp_path / "many", tmp_path / "many.star", rows_per_run=rows_per_run)[0]
        assert path.read_bytes() == first


def test_an_export_is_stable_under_itself(tmp_path: Path) -> None:
    write_shard(tmp_path / "one", "poses.star", ["000002@a.mrcs", "000001@a.mrcs"], "B", ("rlnCoordinateX",))
    first = export_star(tmp_path / "one", tmp_path / "first.star")[0]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "poses.star").write_bytes(first.read_bytes())
    assert export_star(tmp_path / "two", tmp_path / "second.star")[0].read_bytes() == first.read_bytes()


def test_a_shard_sealed_while_the_export_begins_is_neither_lost_nor_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poses = tmp_path / "poses"
    write_shard(poses, "poses.star", ["000001@a.mrcs", "000002@a.mrcs"], "A")
    glob, calls = Path.glob, []

    def glob_after_seal(self: Path, pattern: str) -> object:
        if not calls:
            (poses / "poses.star").rename(poses / "poses_000001.star")
        calls.append(pattern)
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", glob_after_seal)
    table = read_star(export_star(poses, tmp_path / "all.star")[0])
    assert table.column("rlnImageName") == ["000001@a.mrcs", "000002@a.mrcs"]
    assert len(calls) == 2


def test_a_folder_without_poses_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFileError, match="no poses yet"):
        export_star(tmp_path / "poses", tmp_path / "all.star")


def test_an_output_that_would_break_the_session_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "poses", "poses.star", ["000001@a.mrcs"], "A")
    before = (tmp_path / "poses" / "poses.star").read_bytes()
    with pytest.raises(InvalidSettingsError, match="among the session's own poses"):
        export_star(tmp_path / "poses", tmp_path / "poses" / "poses.star")
    with pytest.raises(InvalidSettingsError, match="is a folder"):
        export_star(tmp_path / "poses", tmp_path)
    assert (tmp_path / "poses" / "poses.star").read_bytes() == before


def test_the_outputs_folder_is_made(tmp_path: Path) -> None:
    write_shard(tmp_path / "poses", "poses.star", ["000001@a.mrcs"], "A")
    (written,) = export_star(tmp_path / "poses", tmp_path / "new" / "folder" / "all.star")
    assert len(read_star(written)) == 1


def test_an_older_unposed_file_does_not_stay_beside_a_newer_export(tmp_path: Path) -> None:
    write_shard(tmp_path / "poses", "poses.star", ["000001@a.mrcs"], "A")
    (tmp_path / "all_unposed.star").write_text("old")
    assert len(export_star(tmp_path / "poses", tmp_path / "all.star")) == 1
    assert not (tmp_path / "all_unposed.star").exists()


def test_a_column_that_only_some_rows_have_and_nothing_can_fill_is_left_out_and_said(tmp_path: Path) -> None:
    """Zeros for coordinates make `relion_star_handler --remove_duplicates` throw those rows away."""
    poses = tmp_path / "poses"
    write_shard(poses, "poses_000001.star", ["000001@a.mrcs"], "A", ("rlnCoordinateX", "rlnMtfFileName"))
    write_shard(poses, "poses.star", ["000002@a.mrcs"], "A")
    said: list[tuple[str, tuple[str, ...]]] = []
    (path,) = export_star(
        poses, tmp_path / "all.star", on_left_out=lambda path, labels: said.append((path.name, labels))
    )
    assert said == [("all.star", ("rlnCoordinateX", "rlnMtfFileName"))]
    assert read_star(path).labels == ("rlnImageName", "rlnAngleRot")


def test_what_all_rows_have_is_kept_whatever_it_is(tmp_path: Path) -> None:
    labels = ("rlnCoordinateX", "rlnMtfFileName", "fooBar")
    for name, image in (("poses_000001.star", "000001@a.mrcs"), ("poses.star", "000002@a.mrcs")):
        write_shard(tmp_path / "poses", name, [image], "A", labels)
    said: list[object] = []
    (path,) = export_star(tmp_path / "poses", tmp_path / "all.star", on_left_out=lambda *what: said.append(what))
    assert not said and set(labels) < set(read_star(path).labels)
