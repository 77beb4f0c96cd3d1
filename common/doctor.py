"""What is installed, what hardware is seen, what is missing and how to get it: `python -m common.doctor`.

Exit code 0 when the main job (a picture and a recording to a video) can run here, 1 when it can't. Only the standard
library is imported at the top, so that a broken installation can still be examined.
"""

import importlib
import json
import os
import platform
import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[1]
WEIGHTS_DIR = REPOSITORY / "weights"
# What the main job loads.
NEEDED_WEIGHTS = (
    "small/face_model",
    "small/finder",
    "small/landmarks",
    "small/a2m",
    "small/m2v_autoencoder",
    "small/m2v_denoiser",
)
# Where a package is imported by another name than it is installed by.
MODULE_NAMES = {"hydra-core": "hydra", "pillow": "PIL", "scikit-image": "skimage"}
GIB, MIB = 2**30, 2**20
NEEDED_DISK_BYTES = 500 * MIB  # an hour of 256x256 video and its temporary file
NEEDED_MEMORY_BYTES = 2 * GIB

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; a "problem" stops the main job, a "note" doesn't."""

    group: str
    subject: str
    state: State
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Every check, in the order of the report. A check that fails in an unforeseen way becomes a finding itself."""
    findings = []
    for check in CHECKS:
        try:
            findings += check()
        except Exception as error:  # a doctor must not fall ill with the patient
            what = check.__name__.removeprefix("check_").replace("_", " ")
            findings.append(Finding(what, what, "problem", f"{type(error).__name__}: {error}", "reinstall: uv sync"))
    return findings


def check_python() -> list[Finding]:
    is_new = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    remedy = "" if is_new else "Python 3.11 or newer: uv python install 3.12"
    return [Finding("Python", "version", "ok" if is_new else "problem", found, remedy)]


def check_packages() -> list[Finding]:
    """The packages that pyproject.toml names: all of the core's must import, extras may be absent."""
    import tomllib  # absent before Python 3.11, which is a finding of its own and no reason to stop here

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions, problems = [], []
    for name in map(_package_name, project["dependencies"]):
        if name in ("torch", "transformers"):  # looked at more closely below; transformers takes long to import
            continue
        module = MODULE_NAMES.get(name, name.replace("-", "_"))
        try:
            importlib.import_module(module)
            versions.append(f"{name} {_version(name)}")
        except Exception as error:  # an import can fail in any way: a missing library, a wrong CUDA version
            problems.append(Finding("Packages", name, "problem", _why(error, module), "uv sync"))
    findings = [Finding("Packages", "core", "ok", ", ".join(versions))] if versions else []
    findings += problems
    for extra, requirements in project.get("optional-dependencies", {}).items():
        absent = [name for name in map(_package_name, requirements) if _version(name) == "not installed"]
        found = f"not installed: {', '.join(absent)}" if absent else "installed"
        remedy = f"if you want it: uv sync --extra {extra}" if absent else ""
        findings.append(Finding("Packages", f"extra '{extra}'", "note" if absent else "ok", found, remedy))
    return findings


def check_torch() -> list[Finding]:
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        return [Finding("Computing", "torch", "problem", _why(error, "torch"), "uv sync")]
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs only"
    flags = _cpu_flags()
    bf16 = [name for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")) if flag in flags]
    # Elsewhere (ARM, macOS) the kernel's flag file says nothing: don't claim that there is none.
    how = f"bf16 in hardware ({', '.join(bf16)})" if bf16 else "no bf16 in hardware" if flags else "bf16 unknown"
    threads = f"{torch.get_num_threads()} threads of {len(_usable_cpus())} usable CPUs"
    findings = [
        Finding("Computing", "torch", "ok", f"{torch.__version__}, {build}"),
        Finding("Computing", "CPU", "ok", f"{torch.backends.cpu.get_cpu_capability()}, {how}, {threads}"),
    ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            found = f"{device.name}, {device.total_memory / GIB:.0f} GiB, capability {device.major}.{device.minor}"
            findings.append(Finding("Computing", f"GPU {i}", "ok", found))
    elif torch.version.cuda and Path("/proc/driver/nvidia").exists():
        remedy = f"update the NVIDIA driver to one for CUDA {torch.version.cuda}, or install an older torch"
        findings.append(
            Finding("Computing", "GPU", "note", "there is an NVIDIA driver, but torch can't use it", remedy)
        )
    else:
        findings.append(Finding("Computing", "GPU", "note", "none seen by torch", "none is needed: the CPU does it"))
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)), None)
    remedy = "" if compiler else "only torch.compile needs one, and it is off: apt install g++"
    findings.append(Finding("Computing", "C++ compiler", "ok" if compiler else "note", compiler or "none", remedy))
    return findings


def check_media() -> list[Finding]:
    findings = []
    try:
        av = importlib.import_module("av")
    except Exception as error:
        findings.append(Finding("Media", "video", "problem", f"PyAV: {_why(error, 'av')}", "uv sync"))
    else:
        absent = [codec for codec in ("libx264", "aac") if not _has_encoder(av, codec)]
        found = f"PyAV {av.__version__}, FFmpeg {getattr(av, 'ffmpeg_version_info', 'of unknown version')}, "
        found += f"encoders missing: {', '.join(absent)}" if absent else "encoders libx264 and aac"
        remedy = (
            "use PyAV's own wheel, which has them: uv pip install --reinstall --only-binary av av" if absent else ""
        )
        findings.append(Finding("Media", "video", "problem" if absent else "ok", found, remedy))
    try:
        soundfile = importlib.import_module("soundfile")
    except Exception as error:
        found = f"soundfile: {_why(error, 'soundfile')}"
        findings.append(Finding("Media", "sound", "problem", found, "uv sync, or apt install libsndfile1"))
    else:
        formats = soundfile.available_formats()
        found = f"libsndfile {soundfile.__libsndfile_version__}, reads "
        found += ", ".join(name for name in ("WAV", "FLAC", "OGG", "MP3") if name in formats)
        findings.append(Finding("Media", "sound", "ok", f"{found}; FFmpeg reads the rest"))
    return findings


def check_hubert() -> list[Finding]:
    """HuBERT features are a choice: the built-in weights listen through log-mel."""
    subject = "HuBERT features"
    try:
        importlib.import_module("transformers").HubertModel  # noqa: B018 (the attribute is what takes the import)
    except Exception as error:
        found = f"transformers: {_why(error, 'transformers')}"
        remedy = "not needed for the built-in weights; for HuBERT: uv sync"
        if _version("torchaudio") != "not installed":
            remedy += ", and remove torchaudio, which must match torch's CUDA version: uv pip uninstall torchaudio"
        return [Finding("Options", subject, "note", found, remedy)]
    found = f"transformers {_version('transformers')}; the model is fetched only when you name one"
    return [Finding("Options", subject, "ok", found)]


def check_weights() -> list[Finding]:
    """Weights that come with the repository: size, licence, and what their config says of them."""
    findings = []
    paths = sorted(WEIGHTS_DIR.glob("*/**/model.safetensors"))
    for path in paths:
        name = path.parent.relative_to(WEIGHTS_DIR).as_posix()
        try:
            found = f"{path.stat().st_size / 1024:,.0f} KiB, {_tensors(path)}"
            config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
            if summary := _summary(config):
                found += f"; {summary}"
            findings.append(Finding("Weights", name, "ok", found))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            found = f"damaged: {_line(error)}"
            findings.append(Finding("Weights", name, "problem", found, f"git checkout -- weights/{name}"))
    names = {finding.subject for finding in findings}
    for name in NEEDED_WEIGHTS:
        if name not in names:
            findings.append(Finding("Weights", name, "problem", "missing", f"git checkout -- weights/{name}"))
    if paths:
        licence = WEIGHTS_DIR / "LICENSE"
        first = licence.read_text(encoding="utf-8").splitlines()[0] if licence.is_file() else "no licence file"
        findings.append(Finding("Weights", "licence", "ok", f"{first} (weights/LICENSE)"))
    return findings


def check_room() -> list[Finding]:
    findings = []
    total, available = _memory_bytes()
    if total:
        has_room = available >= NEEDED_MEMORY_BYTES
        found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
        remedy = "" if has_room else f"about {NEEDED_MEMORY_BYTES / GIB:.0f} GiB are needed: close other programs"
        findings.append(Finding("Room", "memory", "ok" if has_room else "note", found, remedy))
    free = shutil.disk_usage(Path.cwd()).free
    has_room = free >= NEEDED_DISK_BYTES
    remedy = "" if has_room else "make room, or write elsewhere with --out"
    findings.append(Finding("Room", "disk", "ok" if has_room else "note", f"{free / GIB:.1f} GiB free here", remedy))
    outputs = Path.cwd() / "outputs"
    folder = outputs if outputs.is_dir() else outputs.parent
    try:
        # Asked of the disk: permission bits say nothing about root, read-only mounts and quotas.
        with tempfile.TemporaryFile(dir=folder):
            pass
        found = "writable" if folder == outputs else "doesn't exist yet; can be created"
        findings.append(Finding("Room", "outputs folder", "ok", found))
    except OSError as error:
        remedy = "change its permissions, or work in another folder"
        findings.append(Finding("Room", "outputs folder", "problem", f"not writable ({error.strerror})", remedy))
    return findings


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_packages,
    check_torch,
    check_media,
    check_hubert,
    check_weights,
    check_room,
)


def verdict(findings: list[Finding]) -> str:
    """The report's last sentence."""
    problems = [finding for finding in findings if finding.state == "problem"]
    if not problems:
        return "Duet can make videos here."
    first = problems[0]
    more = f" There are {len(problems) - 1} more problems above." if len(problems) > 2 else ""
    more = more or (" There is one more problem above." if len(problems) == 2 else "")
    return f"Duet can't make videos here: {first.subject}: {first.found} (remedy: {first.remedy}).{more}"


def show(findings: list[Finding]) -> None:
    """Print the report, as a table where rich is installed, else as lines."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            print(f"{finding.state:8}{finding.group}: {finding.subject}: {finding.found}{remedy}")
        return
    table = Table(box=box.SIMPLE_HEAD, title="Duet: what is here", title_justify="left")
    for heading, share in (("", 1), ("what", 2), ("found", 6), ("what to do", 4)):
        table.add_column(heading, ratio=share if share > 1 else None, overflow="fold")
    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    group = ""
    for finding in findings:
        if group and finding.group != group:
            table.add_section()
        group = finding.group
        cells = (finding.state, f"{finding.group}: {finding.subject}", finding.found, finding.remedy)
        # Text, not markup: a path or an error message may have square brackets in it.
        table.add_row(*(Text(cell, style=styles[finding.state] if i == 0 else "") for i, cell in enumerate(cells)))
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def main() -> int:
    findings = examine()
    show(findings)
    print(verdict(findings))
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def _package_name(requirement: str) -> str:
    """The name in a requirement such as "numpy>=1.26" or "lpips[extra]>=0.1; python_version < '3.13'"."""
    return re.split(r"[\s<>=!~;\[@(]", requirement, maxsplit=1)[0].lower()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _why(error: Exception, module: str) -> str:
    """Why an import failed; a package that is there but misses one of its own is told apart from an absent one."""
    is_absent = isinstance(error, ModuleNotFoundError) and error.name == module
    return "not installed" if is_absent else f"fails to import: {_line(error)}"


def _line(error: BaseException) -> str:
    """An exception's first line, not too long for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _has_encoder(av: object, codec: str) -> bool:
    try:
        av.Codec(codec, "w")  # type: ignore[attr-defined]
    except Exception:  # PyAV's class for this has moved between versions
        return False
    return True


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search(r"^flags\s*:\s*(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def _usable_cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _memory_bytes() -> tuple[int, int]:
    """(total, available) bytes, a container's limit included; zeros where the system doesn't say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return 0, 0
    fields = {key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no limit ("max"), or no such file
        return total, available
    return min(total, limit), max(0, min(available, limit - used))


def _tensors(path: Path) -> str:
    """Number of values and dtypes of a safetensors file, from its header alone; ValueError when it is cut short."""
    with path.open("rb") as file:
        (n_header_bytes,) = struct.unpack("<Q", file.read(8))
        if n_header_bytes > path.stat().st_size:
            raise ValueError("not a safetensors file (a Git LFS pointer in its place? then: git lfs pull)")
        header = json.loads(file.read(n_header_bytes))
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    end = 8 + n_header_bytes + max((entry["data_offsets"][1] for entry in entries), default=0)
    if end != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes instead of {end}")
    n_values = 0
    for entry in entries:
        n_entry = 1
        for size in entry["shape"]:
            n_entry *= size
        n_values += n_entry
    dtypes = ", ".join(sorted({entry["dtype"] for entry in entries}))
    count = f"{n_values / 1e6:.2f} M" if n_values >= 1e5 else f"{n_values:,}"
    return f"{count} values in {dtypes}"


def _summary(config: dict[str, object]) -> str:
    """The first few plain entries of a configuration."""
    plain = [f"{key} {value}" for key, value in config.items() if isinstance(value, (str, int, float))]
    return ", ".join(entry if len(entry) <= 48 else entry[:47] + "…" for entry in plain[:5])


if __name__ == "__main__":
    sys.exit(main())
