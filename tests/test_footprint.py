"""What a prune would take of many devices, told without them."""

import json
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.cost import footprint
from experiments.reporting import results
from experiments.reporting.place import Place

ROOT = Path(__file__).parent.parent
SMALL = footprint.Decoder(layers=3, width=64, keys=32, hidden=128, vocabulary=512)
WEIGHTS = 2 * 512 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_memory_is_divided_among_devices(num_devices):
    found = footprint.measure(SMALL, num_devices)
    assert found["weights"] == WEIGHTS
    assert found["kinds"] == (["all-reduce"] if num_devices > 1 else [])
    # Four bytes each for a weight and its two moments, one for its mask, and counters.
    assert 0 <= found["given"] - 13 * WEIGHTS / num_devices < 100
    # And what is returned is of the same kind, but for where its parts lie.
    assert 0 <= found["returned"] - found["given"] < 400
    assert found["temporaries"] < 5 * WEIGHTS / num_devices


def test_what_is_exchanged_is_counted_in_bytes():
    program = """
      %a = u32[80]{0} all-reduce(%x), replica_groups={}
      %b = (f32[2,3]{1,0}, /*index=1*/u32[], pred[7]) all-reduce-start(%y, %z)
      ROOT %c = bf16[4] all-gather(%a)
      %e = s8[3]{0} all-to-all(%a), dimensions={0}
      %f = u32[2] ragged-all-to-all(%a)
      %g = u32[5] collective-permute-start(%a)
      %h = u32[6] reduce-scatter(%a)
      %d = u32[80]{0} add(%all-reduce, %all-gather)
    """
    assert footprint.exchanged(program) == {
        "all-reduce": 4 * 80 + 4 * 6 + 4 + 7,
        "all-gather": 8,
        "all-to-all": 3,
        "ragged-all-to-all": 8,
        "collective-permute": 20,
        "reduce-scatter": 24,
    }


def test_command_stores_and_tabulates(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- footprint: begin --><!-- footprint: end -->")
    monkeypatch.setattr(results, "README", readme)
    monkeypatch.setattr(results, "STORE", tmp_path)
    monkeypatch.setattr(footprint, "DECODERS", {"small": SMALL})
    monkeypatch.setattr(footprint, "pretend", lambda number: None)  # they are there
    main(["footprint", "--devices", "8"])
    (row,) = json.loads((tmp_path / "footprint/cpu.json").read_text())["rows"]
    assert row == footprint.measure(SMALL, 8)
    assert "| 0.0B | 8 | 0 MB | 0 MB | 0 MB |" in readme.read_text()


@pytest.mark.parametrize("flag", ["0", "12", "4096"])
def test_numbers_that_make_no_sense_are_refused(flag):
    with pytest.raises(SystemExit, match="error: --devices must be"):
        main(["footprint", "--devices", flag])


def test_readme_has_what_is_stored():
    stored = Place("footprint", None).stored()
    readme = (ROOT / "README.md").read_text()
    assert results.insert(readme, "footprint", footprint.table(stored)) == readme
    assert [row["kinds"] for one in stored for row in one["rows"]] == [
        ["all-reduce"]
    ] * 4
