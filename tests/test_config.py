"""utils/config.py: YAML is data with line numbers, the paper's values are the defaults, flags become fields."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.config import Hyp, YamlMap, check_keys, load_hyp, nearest, number, option, parse, read_yaml
from utils.errors import UserError

# Table I of the paper, written out once more.
TABLE_I = {
    "lr0": 0.01, "lrf": 0.1, "momentum": 0.937, "weight_decay": 0.0005, "warmup_epochs": 3.0, "warmup_momentum": 0.8, "warmup_bias_lr": 0.1,
    "box": 0.05, "cls": 0.3, "cls_pw": 1.0, "obj": 0.7, "obj_pw": 1.0, "iou_t": 0.20, "anchor_t": 4.0, "fl_gamma": 0.0,
    "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 0.0, "translate": 0.1, "scale": 0.9, "shear": 0.0, "perspective": 0.0,
    "flipud": 0.0, "fliplr": 0.5, "mosaic": 1.0, "mixup": 0.1, "copy_paste": 0.1,
}


def yaml_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "test.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ---------------------------------------------------------------------------------------------- YAML


def test_keys_know_their_lines(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "# comment\na: 1\n\nb:\n  c: [1, 2]\n  d: {e: x}\n")
    data = read_yaml(path)
    assert data == {"a": 1, "b": {"c": [1, 2], "d": {"e": "x"}}}
    assert data.where() == f"{path}:2" and data.where("a") == f"{path}:2" and data.where("b") == f"{path}:4"
    assert data["b"].where("d") == f"{path}:6" and data["b"]["d"].where("e") == f"{path}:6"
    assert data.where("absent") == f"{path}:2", "a key that is not there: the mapping's own line"


def test_a_bom_and_windows_line_ends_are_no_trouble(tmp_path: Path) -> None:
    data = read_yaml(yaml_file(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: \xe6\xbb\x91\xe5\x9d\xa1\r\n"))
    assert data == {"a": 1, "b": "滑坡"} and data.where("b").endswith(":2")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "stands twice"),
        ("a: 1\nb:\n  c: 1\n  c: 1\n", 4, "stands twice"),
        ("a: 1\nb:\n\t- c\n", 3, "cannot start any token"),
        ("a: 1\nb: !!python/object/apply:os.system ['touch sentinel']\n", 2, "could not determine a constructor"),
        ("a: !!python/name:os.system\n", 1, "could not determine a constructor"),
        ("a: 1\n? [1, 2]\n: 3\n", 2, "a key must be a plain word"),
        ("a: [1, 2\nb: 3\n", 2, "expected"),
        ("- a\n- b\n", 1, "a mapping (key: value) was expected"),
        ("", 1, "a mapping (key: value) was expected"),
        ("just words\n", 1, "a mapping (key: value) was expected"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: *nowhere\n", 1, "undefined alias"),
    ],
)
def test_a_fault_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = yaml_file(tmp_path, text)
    with pytest.raises(UserError) as found:
        read_yaml(path)
    assert str(found.value).startswith(f"{path}:{line}: ") and reason in str(found.value)
    assert "\n" not in str(found.value) and not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"a: \xff\n", "is not UTF-8 text"), (b"a: \x00\n", "not readable as YAML"), (b"a: 2020-13-45\n", "not readable")]
)
def test_bytes_that_are_no_yaml(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_yaml(yaml_file(tmp_path, content))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not readable as YAML"):
        read_yaml(yaml_file(tmp_path, "a: " + "[" * 1200 + "]" * 1200))


@given(st.binary(max_size=60))
def test_any_bytes_give_data_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(read_yaml(path), YamlMap)
    except UserError as error:
        assert str(error).startswith(f"{path}")


def test_unknown_keys_name_their_neighbour(tmp_path: Path) -> None:
    data = read_yaml(yaml_file(tmp_path, "names: [a]\ntrian: x\n"))
    with pytest.raises(UserError) as found:
        check_keys(data, ("train", "names"), "key")
    assert str(found.value) == f"{tmp_path / 'test.yaml'}:2: unknown key 'trian' (did you mean 'train'?)"
    assert nearest("xyz", ["b", "a"]) == " (known: a, b)"
    check_keys(data, ("names", "trian"), "key")


@pytest.mark.parametrize(
    ("value", "kind", "expected"), [("3", int, 3), ("3.0", int, 3), ("0.5", float, 0.5), ("1e-3", float, 0.001), ("-2", float, -2.0), ("1_000", int, 1000)]
)
def test_numbers(tmp_path: Path, value: str, kind: type, expected: float) -> None:
    data = read_yaml(yaml_file(tmp_path, f"a: {value}\n"))
    found = number(data, "a", data["a"], kind)
    assert found == expected and type(found) is kind


@pytest.mark.parametrize("value", ["true", "x", ".nan", ".inf", "-.inf", "nan", "[1]", "~", "1" + "0" * 400])
@pytest.mark.parametrize("kind", [int, float])
def test_what_is_no_number_names_its_line(tmp_path: Path, value: str, kind: type) -> None:
    data = read_yaml(yaml_file(tmp_path, f"b: 1\na: {value}\n"))
    with pytest.raises(UserError, match=r"test\.yaml:2: a is .* number was expected"):
        number(data, "a", data["a"], kind)


def test_a_fraction_is_no_whole_number(tmp_path: Path) -> None:
    data = read_yaml(yaml_file(tmp_path, "a: 2.5\n"))
    with pytest.raises(UserError, match="a whole number was expected"):
        number(data, "a", data["a"], int)


# ---------------------------------------------------------------------------------------------- hyper-parameters


def test_the_defaults_and_the_file_are_table_i() -> None:
    expected = TABLE_I | {"nominal_batch": 64}
    assert dataclasses.asdict(Hyp()) == expected
    path = ROOT / "data" / "hyps" / "ls-yolo.yaml"
    assert dict(read_yaml(path)) == expected, "every value stands in the file"
    assert load_hyp(path) == Hyp()


def test_a_key_left_out_keeps_its_value(tmp_path: Path) -> None:
    assert load_hyp(yaml_file(tmp_path, "lr0: 1e-3\nmosaic: 0\n")) == Hyp(lr0=0.001, mosaic=0.0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("mosiac: 1.0", r":2: unknown hyper-parameter 'mosiac' \(did you mean 'mosaic'\?\)"),
        ("fliplr: 1.5", r":2: hyper-parameter fliplr is 1\.5, 0\.0 to 1\.0 was expected"),
        ("lr0: -0.1", r":2: hyper-parameter lr0 is -0\.1"),
        ("perspective: 0.1", r":2: hyper-parameter perspective"),
        ("scale: 1.1", r":2: hyper-parameter scale"),
        ("anchor_t: 0.5", r":2: hyper-parameter anchor_t"),
        ("momentum: 1.2", r":2: hyper-parameter momentum"),
        ("obj_pw: 0", r":2: hyper-parameter obj_pw"),
        ("degrees: 200", r":2: hyper-parameter degrees"),
        ("shear: 90", r":2: hyper-parameter shear"),
        ("lr0: .nan", r":2: lr0 is nan, a finite number was expected"),
        ("lr0: fast", r":2: lr0 is 'fast', a number was expected"),
        ("lr0: [0.1]", r":2: lr0 is \[0\.1\], a number was expected"),
    ],
)
def test_a_wrong_hyper_parameter_names_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(UserError, match=r"test\.yaml" + reason):
        load_hyp(yaml_file(tmp_path, f"box: 0.05\n{line}\n"))


@pytest.mark.parametrize("name", sorted(TABLE_I))
def test_no_hyper_parameter_takes_nan_or_a_value_below_its_range(name: str) -> None:
    for value in (math.nan, -1.0):
        with pytest.raises(UserError, match=f"hyper-parameter {name} "):
            Hyp(**{name: value})


# ---------------------------------------------------------------------------------------------- command lines


@dataclass(frozen=True)
class Everything:
    """All kinds of fields.

    More text that --help leaves out.
    """

    source: str = option("", "what to read", positional=True)
    conf_thres: float = option(0.25, "score, 50 % say", "--conf")
    epochs: int = option(3, "a number")
    nosave: bool = option(False, "a switch")
    name: str | None = option(None, "may be missing")
    workers: int | None = option(None, "may be missing too")
    classes: list[int] = option([0, 2], "several")
    optimizer: str = option("SGD", "one of", choices=("SGD", "Adam"))
    resume: str | None = option(None, "with or without a value", const="newest")
    derived: int = 7  # no option: not on the command line


def test_every_kind_of_field() -> None:
    assert parse(Everything, ["in"]) == Everything(source="in")
    line = "in --conf 0.5 --epochs 9 --nosave --name x --workers 0 --classes 1 2 3 --optimizer Adam --resume"
    found = parse(Everything, line.split())
    assert found == Everything("in", 0.5, 9, True, "x", 0, [1, 2, 3], "Adam", "newest")
    assert parse(Everything, ["in", "--conf_thres", "0.5", "--resume", "a.pt"]) == Everything("in", 0.5, resume="a.pt")
    assert parse(Everything, ["in", "--conf-thres", "0.5", "--debug"]) == Everything("in", 0.5)
    assert Everything().classes is not Everything().classes, "no list is shared"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "required: source"),
        ("in --epochs x", "invalid int value: 'x'"),
        ("in --epochs 1.5", "invalid int value"),
        ("in --optimizer Adm", "invalid choice: 'Adm'"),
        ("in --epoch 3", "unrecognized arguments: --epoch"),
        ("in --derived 3", "unrecognized arguments"),
        ("in --nosave yes", "unrecognized arguments: yes"),
        ("in --classes", "expected at least one argument"),
        ("in more", "unrecognized arguments: more"),
    ],
)
def test_a_wrong_command_line_ends_with_2(capsys: pytest.CaptureFixture[str], line: str, reason: str) -> None:
    with pytest.raises(SystemExit) as found:
        parse(Everything, line.split())
    assert found.value.code == 2 and reason in capsys.readouterr().err


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as found:
        parse(Everything, ["--help"], prog="tool")
    text = capsys.readouterr().out
    assert found.value.code == 0 and text.startswith("usage: tool ")
    assert "All kinds of fields." in text and "More text" not in text
    for field in dataclasses.fields(Everything):
        if field.metadata:
            assert field.metadata["help"] in text
    assert "score, 50 % say (default: 0.25)" in text and "--debug" in text and "{SGD,Adam}" in text
