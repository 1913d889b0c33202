"""A RELION project's folder after some jobs: layouts of RELION 3.1.3's files, few of them with particles."""

from pathlib import Path

import numpy as np

from cesped_stream.particles.stacks import write_stack

BOX = 8
OPTICS = (
    "\n# version 30001\n\ndata_optics\n\nloop_ \n_rlnOpticsGroupName #1 \n_rlnOpticsGroup #2 \n"
    "_rlnMicrographOriginalPixelSize #3 \n_rlnVoltage #4 \n_rlnSphericalAberration #5 \n_rlnAmplitudeContrast #6 \n"
)
PARTICLE_OPTICS = (
    OPTICS + "_rlnImagePixelSize #7 \n_rlnImageSize #8 \n_rlnImageDimensionality #9 \n"
    f"opticsGroup1            1     2.000000   300.000000     2.700000     0.100000     2.000000  {BOX}   2 \n \n"
)
EXTRACT_LABELS = (
    *("rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit", "rlnImageName", "rlnMicrographName"),
    *("rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnCtfBfactor", "rlnCtfScalefactor"),
    "rlnPhaseShift",
)
REFINED_LABELS = (
    *("rlnGroupNumber", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"),
    *("rlnClassNumber", "rlnNormCorrection", "rlnRandomSubset", "rlnLogLikeliContribution"),
    *("rlnMaxValueProbDistribution", "rlnNrOfSignificantSamples"),
)
COORDINATES = "\ndata_\n\nloop_ \n_rlnCoordinateX #1 \n_rlnCoordinateY #2 \n_rlnAutopickFigureOfMerit #3 \n"


def table(block: str, labels: tuple[str, ...], rows: list[str]) -> str:
    """Return a loop as RELION writes it."""
    head = "".join(f"_{label} #{k} \n" for k, label in enumerate(labels, 1))
    return f"\n# version 30001\n\ndata_{block}\n\nloop_ \n{head}" + "".join(f"{row} \n" for row in rows) + " \n"


def listing(block: str, values: dict[str, str]) -> str:
    """Return a block of single values as RELION writes it."""
    lines = "".join(f"_{label:<50} {value} \n" for label, value in values.items())
    return f"\n# version 30001\n\ndata_{block}\n\n{lines} \n"


MODEL = (
    listing("model_general", {"rlnReferenceDimensionality": "3", "rlnOriginalImageSize": str(BOX)})
    + table("model_classes", ("rlnReferenceImage", "rlnClassDistribution"), ["run_it001_class001.mrc 1.000000"])
    + table("model_class_1", ("rlnSpectralIndex", "rlnResolution"), [f"{k} {k / 16:.6f}" for k in range(5)])
    + table("model_groups", ("rlnGroupNumber", "rlnGroupName"), ["1 group_01"])
    + table("model_pdf_orient_class_1", ("rlnOrientationDistribution",), ["0.020833"] * 48)
)
SAMPLING = listing("sampling_general", {"rlnIs3DSampling": "1", "rlnHealpixOrder": "1"}) + table(
    "sampling_directions", ("rlnAngleRot", "rlnAngleTilt"), ["45.000000 19.471221"] * 48
)
OPTIMISER = "# RELION optimiser; version 3.1.3\n# --o Refine3D/job007/run\n" + listing(
    "optimiser_general", {"rlnExperimentalDataStarFile": "Refine3D/job007/run_it001_data.star"}
)
JOB = listing("job", {"rlnJobType": "5", "rlnJobIsContinue": "0"}) + table(
    "joboptions_values", ("rlnJobOptionVariable", "rlnJobOptionValue"), ["bg_diameter -1", "do_invert Yes"]
)
JOB_PIPELINE = (
    listing("pipeline_general", {"rlnPipeLineJobCounter": "8"})
    + table("pipeline_processes", ("rlnPipeLineProcessName", "rlnPipeLineProcessAlias"), ["Extract/job005/ None"])
    + table("pipeline_nodes", ("rlnPipeLineNodeName", "rlnPipeLineNodeType"), ["Extract/job005/particles.star 3"])
)
POSTPROCESS = listing("general", {"rlnFinalResolution": "3.1"}) + table(
    "fsc", ("rlnSpectralIndex", "rlnFourierShellCorrelationCorrected"), ["0 1.000000", "1 0.900000"]
)
AVERAGES = table(
    "", ("rlnReferenceImage", "rlnClassDistribution"), ["000001@Class2D/job006/run_it025_classes.mrcs 0.1"]
)


class RelionProject:
    """Writes the project; the counts say what it holds."""

    def __init__(self, root: Path, *, micrographs: int = 4, per_micrograph: int = 6, jobs: int = 2) -> None:
        self.root = root
        self.num_particles = micrographs * per_micrograph
        self.kinds: dict[str, int] = {}
        """How many stars are no inputs, by kind as status names it."""
        self._micrographs = [f"mic{m:05d}" for m in range(micrographs)]
        self._per_micrograph = per_micrograph
        self._without_particles(jobs)
        self._extract()
        self._refined()

    @property
    def num_stars(self) -> int:
        """Every star that is no input, and the three that are."""
        return sum(self.kinds.values()) + 3

    def write(self, path: str, text: str, kind: str = "") -> None:
        """Write a file below the project's folder."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if kind:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def _without_particles(self, jobs: int) -> None:
        self.write("default_pipeline.star", JOB_PIPELINE, "pipeline")
        for name in (
            "Import/job001/movies",
            "MotionCorr/job002/corrected_micrographs",
            "CtfFind/job003/micrographs_ctf",
        ):
            block = "movies" if "movies" in name else "micrographs"
            label = "rlnMicrographMovieName" if block == "movies" else "rlnMicrographName"
            rows = [f"MotionCorr/job002/Movies/{mic}.mrc            1" for mic in self._micrographs]
            group = "opticsGroup1            1     2.000000   300.000000     2.700000     0.100000 \n \n"
            self.write(f"{name}.star", OPTICS + group + table(block, (label, "rlnOpticsGroup"), rows), "micrographs")
        for mic in self._micrographs:
            self.write(f"MotionCorr/job002/Movies/{mic}.star", listing("general", {"rlnImageSizeX": "3838"}), "other")
            rows = "".join(f"  {k}.000000  {k}.000000  0.500000 \n" for k in range(self._per_micrograph))
            self.write(f"AutoPick/job004/Movies/{mic}_autopick.star", COORDINATES + rows + " \n", "coordinates")
        self.write(
            "AutoPick/job004/coords_suffix_autopick.star", "CtfFind/job003/micrographs_ctf.star\n", "coordinates"
        )
        for job in range(1, jobs + 1):
            self.write(f"Class2D/job{job:03d}/job.star", JOB, "job")
            self.write(f"Class2D/job{job:03d}/job_pipeline.star", JOB_PIPELINE, "pipeline")
            for iteration in ("000", "001"):
                root = f"Class2D/job{job:03d}/run_it{iteration}"
                self.write(f"{root}_model.star", MODEL, "model")
                self.write(f"{root}_optimiser.star", OPTIMISER, "optimiser")
                self.write(f"{root}_sampling.star", SAMPLING, "sampling")
        self.write("Select/job008/class_averages.star", AVERAGES, "class averages")
        self.write("PostProcess/job009/postprocess.star", POSTPROCESS, "resolution")
        self.write("Import/job001/nothing.star", "", "empty")

    def _extract(self) -> None:
        rng = np.random.default_rng(5)
        for mic in self._micrographs:
            stack = self.root / f"Extract/job005/Movies/{mic}.mrcs"
            stack.parent.mkdir(parents=True, exist_ok=True)
            write_stack(stack, rng.normal(size=(self._per_micrograph, BOX, BOX)).astype(np.float32), 2.0)
            rows = [self._row(mic, k) for k in range(self._per_micrograph)]
            name = f"Extract/job005/Movies/{mic}_extract.star"
            self.write(name, table("images", EXTRACT_LABELS, rows), "Extract's stars of one micrograph")
        rows = [self._row(mic, k) for mic in self._micrographs for k in range(self._per_micrograph)]
        self.write("Extract/job005/particles.star", PARTICLE_OPTICS + table("particles", EXTRACT_LABELS, rows))
        self.write(
            "Trash/Extract/job004/particles.star",
            PARTICLE_OPTICS + table("particles", EXTRACT_LABELS, rows),
            "in RELION's Trash",
        )
        self.write("Select/job008/particles.star", PARTICLE_OPTICS + table("particles", EXTRACT_LABELS, rows[::2]))

    def _refined(self) -> None:
        labels = (*EXTRACT_LABELS, *REFINED_LABELS)
        rows = [
            f"{self._row(mic, k)} 1 {7.5 * k:.6f} {20 + 11 * k:.6f} {3 * k:.6f} 0.5 -0.5 1 1 {1 + (k + m) % 2} 5 0.9 3"
            for m, mic in enumerate(self._micrographs)
            for k in range(self._per_micrograph)
        ]
        text = PARTICLE_OPTICS + table("particles", labels, rows)
        self.write("Refine3D/job007/run_data.star", text)
        for iteration in ("000", "001"):
            self.write(f"Refine3D/job007/run_it{iteration}_data.star", text, "of RELION's iterations")

    @staticmethod
    def _row(mic: str, k: int) -> str:
        return (
            f"  {400 + k}.000000   253.010000     0.500000 {k + 1:06d}@Extract/job005/Movies/{mic}.mrcs "
            f"MotionCorr/job002/Movies/{mic}.mrc            1 10000.000000  9900.000000    12.000000     0.000000     "
            "1.000000     0.000000"
        )
