from pathlib import Path

import pytest
import yaml

from train import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses_and_its_header_says_the_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={path}", "--print_config"])
    assert stop.value.code == 0
    parsed, given = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(path.read_text())
    assert parsed["model"]["encoder"].items() >= given["model"]["encoder"].items()
    assert f"#   python train.py fit --config configs/{path.name}" in path.read_text()
