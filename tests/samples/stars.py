"""Small stars as different programs write them; every number has many digits, so that a cut inside one shows."""

from pathlib import Path

LABELS31 = (
    *("rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"),
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnRandomSubset"),
)


def relion31(num_rows: int = 7) -> bytes:
    """Two optics groups and a trailing " \\n" after each table, as RELION 3.1 writes them."""
    head = (
        "\n# version 30001\n\ndata_optics\n\nloop_ \n_rlnOpticsGroup #1 \n_rlnOpticsGroupName #2 \n_rlnVoltage #3 \n"
        "_rlnSphericalAberration #4 \n_rlnAmplitudeContrast #5 \n_rlnImagePixelSize #6 \n"
        "           1 opticsGroup1   300.000000     2.700000     0.100000     1.330000 \n"
        "           2 opticsGroup2   200.000000     2.700000     0.070000     1.060000 \n \n"
        "\n# version 30001\n\ndata_particles\n\nloop_ \n"
    )
    labels = "".join(f"_{label} #{k} \n" for k, label in enumerate(LABELS31, 1))
    return (head + labels + "".join(relion31_row(k) for k in range(num_rows)) + " \n").encode()


def relion31_row(k: int) -> str:
    return (
        f"{k + 1:06d}@Extract/job010/mic_{k % 3}.mrcs MotionCorr/mic_{k % 3}.mrc {1 + k % 2:12d} "
        f"{11234.25 + 17 * k:.6f} {10987.5 + 13 * k:.6f} {41.125 + k:.6f} "
        f"{-123.456789 + 9 * k:.6f} {91.234567 + k:.6f} {17.654321 + 3 * k:.6f} "
        f"{-2.345678 + k:.6f} {3.456789 - k:.6f} {1 + k % 2:12d} \n"
    )


def relion30(num_rows: int = 5) -> bytes:
    """One block, origins in pixels, optics in columns."""
    labels = (
        *("rlnVoltage", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnSphericalAberration"),
        *("rlnAmplitudeContrast", "rlnMagnification", "rlnDetectorPixelSize", "rlnImageName", "rlnMicrographName"),
        *("rlnOriginX", "rlnOriginY"),
    )
    rows = "".join(
        f"300.000000 {15000.5 + k:.6f} {14000.25 + k:.6f} 12.340000 2.700000 0.100000 10000.000000 1.500000 "
        f"{k + 1:06d}@particles.mrcs mic.mrc {1.25 + k:.6f} {-2.5 - k:.6f} \n"
        for k in range(num_rows)
    )
    return ("\ndata_\n\nloop_ \n" + "".join(f"_{a} #{k} \n" for k, a in enumerate(labels, 1)) + rows + " \n").encode()


def ctf_star(row: dict[str, str], group: dict[str, str], second: dict[str, str] | None = None) -> bytes:
    """Two rows (equal but for their index, or `second`) of one optics group "g", with these columns in either table."""
    optics = {"rlnOpticsGroup": "1", "rlnOpticsGroupName": "g", "rlnImagePixelSize": "3.0"}
    optics |= {"rlnImageSize": "32", "rlnImageDimensionality": "2"} | group
    lines = ["", "data_optics", "", "loop_", *(f"_{label}" for label in optics), " ".join(optics.values()), "", ""]
    labels = ("rlnImageName", "rlnOpticsGroup", *row)
    rows = (" ".join((f"{k}@s.mrcs", "1", *values.values())) for k, values in enumerate((row, second or row), 1))
    return "\n".join([*lines, "data_particles", "", "loop_", *(f"_{a}" for a in labels), *rows, "", ""]).encode()


def quoted_names() -> bytes:
    """Names with blanks in quotes, as RELION 4 and starfile write them, after a table that is not ours."""
    return (
        b"data_general\n\n_rlnNote 'two words'\n\ndata_optics\n\nloop_\n"
        b"_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n_rlnImagePixelSize #3\n1 'grid square 1' 1.250000\n"
        b"\ndata_particles\n\nloop_\n_rlnImageName #1\n_rlnMicrographName #2\n_rlnOpticsGroup #3\n"
        b"1@a.mrcs \"data 01/mic 1.mrc\" 1\n2@a.mrcs 'data 01/mic 2.mrc' 1\n3@a.mrcs data_01/mic_3.mrc 1\n"
    )


def windows_line_ends() -> bytes:
    return relion31(4).replace(b"\n", b"\r\n")


def written(folder: Path, data: bytes, name: str = "particles.star") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def particles_first() -> bytes:
    """data_particles before data_optics, which RELION reads as well."""
    head, particles = relion31(5).split(b"\n# version 30001\n\ndata_particles")
    return b"\ndata_particles" + particles + head
