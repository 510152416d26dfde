"""Whatever is given, the command line ends with exit code 0 or 2, one line and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.in_process import refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serach"], "no command 'serach'"),
        (["search", "--epoch=3"], "'--epoch'; did you mean --epochs?"),
        (["search", "--quite-unknown"], "'--quite_unknown'; --help"),
        (["search", "digits"], "no argument 'digits'; did you mean --data digits?"),
        (["search", "--epochs"], "--epochs: expected one argument"),
        (["search", "--epochs=x"], "epochs=x must be a whole number"),
        (["search", "--epochs=1.5"], "epochs=1.5 must be a whole number"),
        (["search", "--epochs=0"], "epochs=0 must be at least 1"),
        (["search", "--epochs=-3"], "epochs=-3 must be at least 1"),
        (["search", "--method=random"], "one of 'da2s', 'darts', 'pc-darts'"),
        (["search", "--learning-rate=fast"], "learning_rate=fast must be a number"),
        (["search", "--learning-rate=-1"], "learning_rate=-1.0 must be positive"),
        (["search", "--second-order=maybe"], "second_order=maybe must be true or false"),
        (["search", "--channels=6", "--partial-channels=4"], "channels=6"),
        (["search", "--keep-normal=1,2,3,9"], "node 4 of normal cells; this node can keep 1 to 5"),
        (["search", "--keep-normal=1,2"], "4"),
        (["search", "--keep-reduce=0,1,1,1"], "reduce"),
        (["search", "--keep-normal=1,x"], "keep_normal=[1, 'x'] must be a list of whole numbers"),
        (["search", "--warmup=50", "--epochs=10"], "warmup=50 leaves no time"),
        (["search", "--operations=skip_connect,conv_9x9"], "unknown operation 'conv_9x9'"),
        (["search", "--operations="], "operations"),
        (["search", "--space=nasnet"], "nasnet"),
        (["search", "--batch-size=100000"], "batch_size=100000 is larger than half"),
        (["search", "--device=cuda:99"], "device='cuda:99'"),
        (["search", "--device=tpu"], "device='tpu'"),
        (["search", "--seed=-1"], "seed=-1"),
        (["search", "--seed=99999999999999999999"], "seed=99999999999999999999"),
        (["search", "--limit=0"], "limit=0"),
        (["search", "--image-size=3"], "3"),
        (["search", "--data=nowhere"], "no data set 'nowhere'"),
        (["search", "--data=nowhere.npz"], "no data set 'nowhere.npz'"),
        (["search", "--data=."], "."),
        (["search", "--compat=daas", "--method=darts"], "compat='daas'"),
        (["search", "--config=nowhere.yaml"], "cannot read the settings file nowhere.yaml"),
        (["search", "--config=."], "cannot read the settings file ."),
        (["search", "--resume=nowhere"], "nowhere holds no search"),
        (["search", "--resume=nowhere", "--epochs=3"], "leave out epochs"),
        (["search", "--resume=nowhere", "--out=x"], "leave out out"),
        (["retrain"], "give the run folder of a search"),
        (["retrain", "nowhere"], "cannot read the genotype nowhere: No such file or directory"),
        (["retrain", "--resume=nowhere"], "nowhere holds no training"),
        (["retrain", "nowhere", "--resume=nowhere"], "leave out nowhere"),
        (["evaluate", "nowhere"], "no model nowhere"),
        (["predict", "nowhere", "image.png"], "no model nowhere"),
        (["predict", "nowhere"], "required"),
        (["export", "nowhere", "model.onnx"], "no model nowhere"),
        (["export", "nowhere", "model.tflite"], "choose from .pt, .pt2, .onnx"),
        (["compare"], "required"),
        (["compare", "nowhere"], "nowhere is not a run folder"),
        (["report", "nowhere"], "nowhere is not a run folder"),
        (["info", "--verbose"], "'--verbose'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], words: str, capfd: pytest.CaptureFixture, elsewhere: Path
) -> None:
    assert words in refused(capfd, *arguments)
    assert [p for p in elsewhere.rglob("*") if p.is_file()] == []
    assert not list(elsewhere.glob("runs/*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs: [", "not a YAML file at line 1"),
        (b"epochs: 3\n\tcells: 2", "not a YAML file at line 2"),
        (b"\xff\xfe\x00", "not a YAML file"),
        (b"2026-99-99", "not a YAML file"),
        (b"[" * 5000, "not a YAML file"),
        (b"just text", "holds 'just text'"),
        (b"- epochs", "holds ['epochs']"),
        (b"epochz: 3", "no setting 'epochz'; did you mean epochs?"),
        (b"epochs: many", "epochs=many must be a whole number"),
        (b"epochs: true", "epochs=True must be a whole number"),
        (b"3: 4", "3"),
        (b"data: [digits]", "data=['digits'] must be text"),
        (b"keep: 3", "keep=3 must give a list per kind of cell"),
        (b"keep: {normal: 3}", "keep_normal=3 must be a list"),
        (b"keep: {sideways: [2]}", "no setting 'keep_sideways'"),
        (b"operations: [1]", "operations=[1] must be a list of names"),
        (b"a: !!python/object/apply:os.system ['touch owned']", "not a YAML file"),
    ],
)
def test_wrong_settings_files(
    content: bytes, words: str, capfd: pytest.CaptureFixture, elsewhere: Path
) -> None:
    Path("s.yaml").write_bytes(content)
    assert words in refused(capfd, "search", "--config=s.yaml")
    assert not Path("owned").exists()
