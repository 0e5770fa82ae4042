"""Near duplicates through datatrove, without network: its stages, its executors, and what is ours in between."""

import random
import stat
import sys

import numpy as np
import pytest

pytest.importorskip("datatrove")

from datatrove.pipeline.dedup import MinhashDedupSignature  # noqa: E402
from groundup import minhash  # noqa: E402
from groundup.errors import InputError  # noqa: E402
from groundup.minhash import CONFIG, Signatures, WordSplitter, build_stages, find_clusters  # noqa: E402


def texts(count, seed=0):
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghij", k=6)) for _ in range(2000)]
    return [" ".join(generator.choices(words, k=generator.randint(80, 200))) for _ in range(count)]


class Parts:
    """Documents for datatrove, dealt to parts in turn."""

    def __init__(self, texts):
        self.texts = texts

    def __call__(self, _, part, parts):
        from datatrove.data import Document

        return (Document(text=text, id=str(n)) for n, text in enumerate(self.texts[part::parts]))


@pytest.mark.parametrize("parts", [1, 2])
def test_near_duplicates_are_clusters(tmp_path, parts):
    different = texts(12)
    changed = different[0].split()
    changed[40] = "changed"
    near = [*different, " ".join(changed), f"{different[5].upper()}!"]
    found = find_clusters(Parts(near), tmp_path, parts, "local", {"workers": 1})
    clusters = {}
    for part, rows in enumerate(found):
        for place, cluster in rows.tolist():
            clusters.setdefault(cluster, set()).add(place * parts + part)
    assert sorted(map(sorted, clusters.values())) == [[0, 12], [5, 13]]


def test_finished_stages_are_not_run_again(tmp_path, monkeypatch):
    first = find_clusters(Parts(texts(3) * 2), tmp_path, 1, "local", {"workers": 1})
    monkeypatch.setattr(Signatures, "run", lambda *_: pytest.fail("signed again"))
    again = find_clusters(Parts([]), tmp_path, 1, "local", {"workers": 1})
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in again] and len(first[0]) == 6


def test_signature_of_a_long_document_is_upstreams(tmp_path, monkeypatch):
    ours, theirs = (kind(str(tmp_path), CONFIG, WordSplitter()) for kind in (Signatures, MinhashDedupSignature))
    shingles = ours.get_shingles(" ".join(texts(60)))
    monkeypatch.setattr(minhash, "SHINGLES", 1000)
    assert len(shingles) > 5000 and len(shingles) % 1000
    assert ours.get_signature(shingles) == theirs.get_signature(shingles)


def test_shingles_are_five_words_in_lower_case_without_punctuation(tmp_path):
    signatures = Signatures(str(tmp_path), CONFIG, WordSplitter())
    same = signatures.get_shingles("One two, THREE — four\nfive six!")
    assert same.shape == (2, 1) and np.array_equal(same, signatures.get_shingles("one two three four five six"))
    assert signatures.get_shingles("only four words here").shape == (0, 1)
    other = signatures.get_shingles("Mira has 3 apples and 5 pears")
    assert not np.array_equal(other, signatures.get_shingles("Mira has 4 apples and 9 pears"))  # numbers count


def test_slurm_gets_scripts_that_wait_for_one_another(tmp_path, monkeypatch):
    """With an `sbatch` of our own on the PATH: datatrove writes its scripts, submits them in order, and nothing runs here."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho Submitted batch job $(wc -l < {tmp_path}/asked)\n')
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    settings = {"partition": "cpu", "time": "2:00:00", "mem_per_cpu_gb": 4}
    documents, directory = Parts(texts(2)), tmp_path / "minhash"
    assert find_clusters(documents, directory, 6, "slurm", settings, launch=False) is None
    assert not (tmp_path / "asked").exists()
    assert find_clusters(documents, directory, 6, "slurm", settings) is None  # asked, not done
    scripts = {
        name: (directory / "logs" / name / "launch_script.slurm").read_text() for name in ("signatures", "buckets", "clusters")
    }
    for (name, script), tasks in zip(scripts.items(), (6, 14, 1), strict=True):
        for line in ("partition=cpu", "time=2:00:00", "mem-per-cpu=4G", f"array=0-{tasks - 1}", f"job-name=minhash-{name}"):
            assert f"#SBATCH --{line}\n" in script
        assert "launch_pickled_pipeline" in script
    asked = [line for line in (tmp_path / "asked").read_text().splitlines() if "RUN_OFFSET" in line]
    assert len(asked) == 3 and "dependency" not in asked[0]
    assert all("--dependency=afterok:" in line for line in asked[1:])


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="executor slurm: .*sbatch"):
        find_clusters(Parts([]), tmp_path / "minhash", 1, "slurm", {"partition": "cpu", "time": "1:00:00"})


def test_ray_is_built_and_asks_for_ray(tmp_path, monkeypatch):
    stages = build_stages(Parts([]), tmp_path, 4, "ray", {"mem_per_cpu_gb": 4})
    assert (
        [stage.world_size for stage in stages] == [4, 14, 1] and stages[2].depends is stages[1] and stages[1].depends is stages[0]
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="executor ray: "):
        find_clusters(Parts([]), tmp_path, 4, "ray", {})


@pytest.mark.parametrize(
    ("executor", "settings", "message"),
    [
        ("slurm", {}, "executor slurm: missing 2 required positional arguments: 'time' and 'partition'"),
        ("slurm", {"time": "1", "partition": "a", "queue": 1}, "unexpected keyword argument 'queue'"),
        ("lokal", {}, "`executor: lokal` is unknown"),
    ],
)
def test_executor_that_is_wrong(tmp_path, executor, settings, message):
    with pytest.raises(InputError, match=message):
        build_stages(Parts([]), tmp_path, 1, executor, settings)
