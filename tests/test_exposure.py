"""What of an evaluation a model was trained on, from the records of its ladder and the files that they name."""

import json

import pytest
from groundup import record
from groundup.exposure import Exposure, training_data
from groundup.sources import describe_files, find_files

SEEN = "Leo has twelve red apples in a basket and gives five of them to his sister before the long winter"
OTHER = "Mira keeps her seven grey geese behind the mill where the river bends and the old road ends"
THIRD = "Which of the three towns on the northern coast was built around a harbour by the sons of Orm"


@pytest.fixture
def rung(tmp_path, write):
    """Write a stage directory: the rows it was trained on, and its parent."""

    def rung(name, rows, parent=None, **fields):
        path = write(f"{name}.jsonl", rows)
        entry = {"name": path, **describe_files(find_files(path))}
        parent = {"path": str(tmp_path / parent)} if parent else None
        record.write(tmp_path / name, {"rung": name, "status": "finished", "data": [entry], "parent": parent, **fields})
        return tmp_path / name

    return rung


def looked_for(**texts):
    return Exposure({name: [[text] for text in each] for name, each in texts.items()})


def test_share_is_of_the_items_that_stand_in_any_rungs_data(rung):
    rung("pretrain", [{"text": f"A tale. {SEEN}. The end."}, {"text": "nothing"}])
    chat = [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": OTHER.upper()}]}]
    exposure = looked_for(documents=[SEEN, THIRD], questions=[OTHER, THIRD, "How many geese?", SEEN], cloze=["Ada lives in"])
    grown = exposure.of(rung("sft", chat, parent="pretrain"))
    assert grown["documents"] == {"share": 0.5, "items": 2, "too_short": 0}
    assert grown["questions"] == {"share": 2 / 3, "items": 3, "too_short": 1}
    assert grown["cloze"] == {"unchecked": "no text of eight words or more"}
    assert exposure.of(rung("pretrain", [{"text": f"A tale. {SEEN}. The end."}]))["questions"]["share"] == 1 / 3


def test_held_out_rows_are_not_training_data(rung, tmp_path):
    directory = rung("pretrain", [{"text": SEEN}])
    data = record.read(directory)["data"]
    record.update(directory, config={"eval_dataset": data[0]["name"]})
    assert looked_for(documents=[SEEN]).of(directory)["documents"]["share"] == 0
    for trained in ({"dataset": data[0]["name"]}, {"datasets": [{"path": data[0]["name"], "weight": 1.0}]}):
        record.update(directory, config={"eval_dataset": data[0]["name"], **trained})
        assert looked_for(documents=[SEEN]).of(directory)["documents"]["share"] == 1
    for held_out, share in ((9, 0), (8, 1)):  # by prepare.py: all of this source's documents, or not all
        record.update(directory, config={"dataset": "out/tokens"}, data=[data[0] | {"used": 9, "held_out": held_out}])
        assert looked_for(documents=[SEEN]).of(directory)["documents"]["share"] == share
    record.update(directory, config={}, rung="random")  # it has the record of the run that it began
    assert training_data(directory) == []


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path, directory: path.write_text(json.dumps({"text": OTHER})), "has changed since"),
        (lambda path, directory: path.unlink(), "no such file"),
        (lambda path, directory: record.update(directory, data=[{"name": "owner/name", "revision": "1f2e"}]), "no local file"),
        (lambda path, directory: record.update(directory, parent={"path": "out/gone/sft"}), "out/gone/sft"),
        (lambda path, directory: (directory / "run.json").unlink(), "no record"),
    ],
)
def test_what_cannot_be_known_is_not_checked(rung, tmp_path, spoil, says):
    directory = rung("pretrain", [{"text": SEEN}])
    spoil(tmp_path / "pretrain.jsonl", directory)
    found = looked_for(documents=[SEEN]).of(directory)["documents"]
    assert set(found) == {"unchecked"} and says in found["unchecked"]


def test_a_file_that_two_models_share_is_read_once(rung, monkeypatch):
    from groundup import exposure

    reads, read = [], exposure.read_files
    monkeypatch.setattr(exposure, "read_files", lambda *given: reads.append(given) or read(*given))
    rung("pretrain", [{"text": SEEN}])
    last = rung("sft", [{"prompt": OTHER, "completion": "Yes."}], parent="pretrain")
    checked = looked_for(documents=[SEEN, OTHER, THIRD, "The same words again and again in another order entirely"])
    assert [checked.of(directory)["documents"]["share"] for directory in (last, last.parent / "pretrain", last)] == [0.5, 0.25, 0.5]
    assert len(reads) == 2


def test_nothing_to_look_for(rung):
    assert Exposure({}).of(rung("pretrain", [{"text": SEEN}])) == {}
