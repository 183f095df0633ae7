"""Tables made again: the plan, the choice of weights, several workers, failures, verdicts and what is printed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from limbeck.assembly.teacher import teacher_recipe
from limbeck.cli import main
from limbeck.errors import UserError
from limbeck.recipes.recipe import Recipe
from limbeck.runs import lock, run
from limbeck.studies import pool, reproduce, tables
from limbeck.studies.pool import place_of
from limbeck.studies.reproduce import Plan, make_plan, table_folder, weighted
from limbeck.studies.table_text import cells_of, markdown, table_record
from limbeck.studies.verdicts import Cell, judge

Scores = Callable[[Recipe], float]


def plan(**more: Any) -> Plan:
    given = {"pairs": ["cnn-32-cnn-4"], "rows": ["no distillation", "L2", "BatchNorm"], "seeds": [0, 1, 2], **more}
    return make_plan("normalization", "tiny", {"epochs": 1}, **given)


def pretend(monkeypatch: pytest.MonkeyPatch, score: Scores, made: list[Recipe] | None = None) -> None:
    """Runs that take no time, and whose top-1 is a function of the recipe."""

    def run_it(recipe: Recipe, folder: Path, *, if_begun: bool = False, said: set[str] | None = None) -> None:
        del if_begun, said
        if made is not None:
            made.append(recipe)
        figures = {"metric": "top1", "last": {"top1": score(recipe)}, "best": {"top1": score(recipe)}, "seconds": 2.0}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(figures))
        (folder / "student.safetensors").write_bytes(b"")

    monkeypatch.setattr(run, "run", run_it)


def make(plan: Plan, folder: Path) -> dict[str, Cell]:
    cells = reproduce.reproduce(plan, folder, say=lambda line: None, on_run=lambda cells: None)
    return {cell.row: cell for cell in cells}


@pytest.mark.parametrize("name", tables.TABLES)
@pytest.mark.parametrize("scale", ["tiny", "small", "full"])
def test_every_row_of_every_table_is_a_recipe(name: str, scale: tables.Scale) -> None:
    chosen = tables.table(name)
    data = {"data": "imagenet:images"} if scale == "full" and name != "coco" else {}
    if scale not in chosen.pairs:
        with pytest.raises(UserError, match=f"table {name} has no pairs at scale {scale}; it has small, full"):
            make_plan(name, scale, data, seeds=[0])
        return
    made = make_plan(name, scale, data, seeds=[0])
    assert made.pairs == tuple(chosen.pairs[scale])
    for claim in chosen.claims:
        assert {claim.better, claim.worse} <= chosen.rows.keys()
    for pair, figures in chosen.printed.items():
        assert pair in chosen.pairs["full"]
        assert figures.keys() <= chosen.rows.keys()
        low, high = {"top-1": (40, 90), "AP": (25, 45)}.get(chosen.metric, (0, 2))
        assert all(low < value < high for value in figures.values())
    for pair in made.pairs:
        recipes = [made.recipe(pair, row, seed=3, factor=1.0) for row in made.rows]
        assert {recipe.seed for recipe in recipes} == {3}
        assert len({recipe.to_yaml() for recipe in recipes}) == len(recipes)  # no row is another one
        students = {str(recipe.student).removesuffix("_distilled") for recipe in recipes}  # alone, it has one head
        assert len({(recipe.epochs, recipe.lr, recipe.batch_size) for recipe in recipes}) == len(students) == 1
        taught = {recipe.teacher for recipe in recipes if recipe.method != "alone"}
        assert len(taught) == 1


def test_rows_of_a_table_share_one_teacher() -> None:
    """What is only a student's setting makes no other teacher, whatever table it is in."""
    for scale in ("tiny", "small"):
        made = make_plan("metrics", scale, {}, seeds=[0, 1])
        recipes = [made.recipe(made.pairs[0], row, seed=1, factor=4.0) for row in made.rows]
        teachers = {teacher_recipe(recipe).to_yaml() for recipe in recipes}
        assert len(teachers) == 1


def test_weights_of_detectors_that_are_multiplied() -> None:
    made = make_plan("coco", "full", {}, seeds=[0], pairs=["R50-MV2"])
    found = {row: weighted(made.recipe("R50-MV2", row, seed=0, factor=1.0), 0.5) for row in made.rows}
    assert found["student"] == {}
    assert found["KD"] == {"logit_weight": 2.0}
    assert found["ours"] == {"feature_weight": 1.0}
    assert {row: found[row]["rival_weight"] for row in ("FitNet", "ReviewKD", "PKD", "FGD")} == {
        "FitNet": 0.05,
        "ReviewKD": 1.0,
        "PKD": 1.5,
        "FGD": 0.5,
    }


def test_students_start_from_weights_of_their_own() -> None:
    words = ["small/cnn-4=start"]
    made = make_plan("logsum", "tiny", {}, seeds=[0], student_weights=words)
    for pair in made.pairs:
        for row in made.rows:
            assert made.recipe(pair, row, seed=0, factor=1.0).student_weights == "start"
    with pytest.raises(UserError, match=r"--student-weights: there is no 'small/cnn-5'.*; there are small/cnn-4"):
        make_plan("logsum", "tiny", {}, seeds=[0], student_weights=["small/cnn-5=start"])


def test_a_table_of_what_the_probe_saw(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The figure is a mean over blocks at the end of a run, not a percentage; the weight is still chosen by top-1."""
    words = ["reproduce", "equivariance", "--scale", "tiny", "--rows", "student", "--seeds", "1", "--epochs", "1"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert "plain: translation error, 1 seeds" in capfd.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "equivariance-tiny" / "table.json").read_text())["rows"]
    log = (tmp_path / "out" / "runs" / row["runs"]["0"] / "log.jsonl").read_text().splitlines()
    probes = [record for line in log if (record := json.loads(line))["kind"] == "probe"]
    blocks = probes[-1]["equivariance"].values()
    assert len(blocks) == 4
    assert row["last"]["mean"] == pytest.approx(sum(blocks) / 4)
    assert 0.001 < row["last"]["mean"] < 3
    made = make_plan("equivariance", "tiny", {"epochs": 1}, seeds=[0, 1, 2], factors=[1.0])
    cells = [
        Cell("plain", row, None, False, dict(enumerate(values)), dict(enumerate(values)), 1.0)
        for row, values in {"student": (0.9, 1.0, 0.95), "ours": (0.1, 0.21, 0.14)}.items()
    ]
    record = table_record(made, cells, command="x")
    assert record["claims"][0]["verdict"] == "holds"
    assert record["claims"][0]["difference"]["mean"] == pytest.approx(0.8)
    assert "translation error, mean ± sd" in markdown(record)


@pytest.mark.long
def test_a_table_of_detectors(colored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it costs, and two rows of it, really trained."""
    words = ["reproduce", "coco", "--pairs", "resnet20-resnet8", "--rows", "student", "FitNet", "--data", str(colored)]
    words += ["--classes", "red", "--seeds", "1", "--factors", "1", "--epochs", "1", "--teacher-epochs", "16"]
    words += ["--batch-size", "4"]
    words += ["--device", "cpu", "--precision", "float32", "--out", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    assert "in all 2 runs" in capfd.readouterr().out
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "resnet20-resnet8: AP in percent, 1 seeds" in said
    record = json.loads((tmp_path / "out" / "coco-small" / "table.json").read_text())
    assert (record["unit"], record["plan"]["changes"]["classes"]) == ("AP in percent", ["red"])
    assert [row["last"]["n"] for row in record["rows"]] == [1, 1]
    assert "; AP in percent, mean" in markdown(record)
    assert main(words) == 0
    assert "the seeds that count]" not in capfd.readouterr().out


def test_weights_that_are_multiplied() -> None:
    made = make_plan("imagenet", "tiny", {}, seeds=[0])
    found = {row: weighted(made.recipe(made.pairs[0], row, seed=0, factor=1.0), 3.0) for row in made.rows}
    assert found["student"] == {}
    assert found["KD"] == {"logit_weight": 12.0}
    assert found["ours"] == {"feature_weight": 6.0, "logit_weight": 12.0}
    assert found["CRD"] == {"rival_weight": pytest.approx(2.4)}


def test_the_weight_is_chosen_on_a_seed_that_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(recipe: Recipe) -> float:
        if recipe.method == "alone":
            return 0.5
        if recipe.feature_loss == "cosine":  # better the larger: the edge
            return 0.6 + 0.01 * recipe.feature_weight
        return 0.7 - 0.1 * abs(recipe.feature_weight - 2.0) + 0.001 * recipe.seed

    made: list[Recipe] = []
    pretend(monkeypatch, score, made)
    cells = make(plan(), tmp_path / "out")
    assert len(made) == 2 * 3 + 3 * 3
    assert [recipe.seed for recipe in made] == [reproduce.TUNING_SEED] * 6 + [0] * 3 + [1] * 3 + [2] * 3
    assert (cells["no distillation"].factor, cells["no distillation"].is_edge) == (None, False)
    assert (cells["L2"].factor, cells["L2"].is_edge) == (4.0, True)
    assert (cells["BatchNorm"].factor, cells["BatchNorm"].is_edge) == (1.0, False)
    assert cells["L2"].last == pytest.approx({0: 0.68, 1: 0.68, 2: 0.68})
    assert all((tmp_path / "out" / "runs" / name).is_dir() for cell in cells.values() for name in cell.runs.values())
    again: list[Recipe] = []
    pretend(monkeypatch, score, again)
    make(plan(seeds=[0, 1, 2, 3]), tmp_path / "out")
    assert [(recipe.seed, recipe.method) for recipe in again] == [(3, "alone"), (3, "projector"), (3, "projector")]


def test_tables_share_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student alone and the mean squared error with batch norm are in both, under other names."""
    made: list[Recipe] = []
    pretend(monkeypatch, lambda recipe: 0.5, made)
    norms = make(plan(factors=[1.0]), tmp_path)
    assert len(made) == 9
    logsum = make_plan("logsum", "tiny", {"epochs": 1}, pairs=["cnn-32-cnn-4"], seeds=[0, 1, 2], factors=[1.0])
    cells = make(logsum, tmp_path)
    assert len(made) == 12
    assert {recipe.feature_loss for recipe in made[9:]} == {"log_sum"}
    assert cells["without LogSum"].runs == norms["BatchNorm"].runs
    assert cells["no distillation"].runs == norms["no distillation"].runs
    assert table_folder(logsum, tmp_path) != table_folder(plan(), tmp_path)


def test_what_is_another_run() -> None:
    recipe = Recipe(teacher="small/cnn-32", student="small/cnn-4", data="digits", method="projector", seed=1)
    place = place_of(Path(), recipe)
    assert place.name.startswith("small-cnn-32-to-small-cnn-4--projector")
    assert place.name.endswith("-seed1")
    for same in ({"name": "mine"}, {"workers": 2}, {"device": "cpu"}, {"shard": True}, {"probe": 7}):
        assert place_of(Path(), recipe.changed(same)) == place
    for other in ({"seed": 2}, {"lr": 0.3}, {"feature_weight": 3.0}, {"precision": "float32"}, {"cache_views": 2}):
        assert place_of(Path(), recipe.changed(other)) != place


def test_teachers_are_named_where_there_are_several() -> None:
    def teachers(*words: str, pairs: tuple[str, ...] = ()) -> dict[str, str]:
        return dict(make_plan("logsum", "small", {}, pairs=pairs, seeds=[0], teacher_weights=words).teachers)

    one = ("vgg8-resnet8",)
    assert teachers("t.safetensors", pairs=one) == {"cifar/vgg8": "t.safetensors"}
    assert teachers("cifar/vgg8=a=b", pairs=one) == {"cifar/vgg8": "a=b"}
    assert teachers("cifar/vgg8=a", "cifar/resnet20=b") == {"cifar/vgg8": "a", "cifar/resnet20": "b"}
    with pytest.raises(UserError, match="of which teacher"):
        teachers("t.safetensors")
    with pytest.raises(UserError, match=r"no 'cifar/vgg' \(did you mean"):
        teachers("cifar/vgg=a")
    made = make_plan("logsum", "small", {}, seeds=[0], teacher_weights=["cifar/vgg8=a"])
    weights = {(p, r): made.recipe(p, r, seed=0, factor=1.0).teacher_weights for p in made.pairs for r in made.rows}
    assert {key for key, value in weights.items() if value == "a"} == {
        ("vgg8-resnet8", "without LogSum"),
        ("vgg8-resnet8", "with LogSum"),
    }


def test_a_single_factor_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: dict[str, float] = {}

    def score(recipe: Recipe) -> float:
        weights[recipe.feature_loss] = recipe.feature_weight
        return 0.5

    pretend(monkeypatch, score)
    cells = make(plan(factors=[0.5]), tmp_path)
    assert weights["cosine"] == 1.0
    assert (cells["L2"].factor, cells["L2"].is_edge) == (0.5, False)
    assert cells["no distillation"].factor is None


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(recipe: Recipe) -> float:
        if recipe.feature_loss == "cosine":
            raise UserError("the loss is not finite at step 7")
        return 0.5

    pretend(monkeypatch, score)
    chosen = plan()
    cells = make(chosen, tmp_path)
    assert cells["L2"].last == {}
    assert cells["L2"].failed == "the loss is not finite at step 7"
    assert cells["L2"].factor == 1.0
    assert len(cells["BatchNorm"].last) == 3
    text = markdown(table_record(chosen, list(cells.values()), command="x"))
    assert "| L2 | failed |" in text
    assert "- failed: cnn-32-cnn-4, L2: the loss is not finite at step 7" in text


def test_what_another_process_has_begun_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recipe] = []
    pretend(monkeypatch, lambda recipe: 0.5, made)
    chosen = plan(factors=[1.0], seeds=[0])
    place = place_of(tmp_path / reproduce.RUNS, chosen.recipe("cnn-32-cnn-4", "L2", seed=0, factor=1.0))
    place.mkdir(parents=True)
    own = table_folder(chosen, tmp_path)
    own.mkdir()
    (own / reproduce.PLAN_FILE).write_text(json.dumps(chosen.record()))
    held = FileLock(place / lock.LOCK)
    held.acquire()
    assert lock.is_held(place)

    def other_is_done(seconds: float) -> None:
        assert seconds == pool.WAIT
        held.release()

    monkeypatch.setattr(pool.time, "sleep", other_is_done)
    make(chosen, tmp_path)
    assert not lock.is_held(place)
    losses = [recipe.feature_loss for recipe in made if recipe.method != "alone"]
    assert losses == ["mean_squared_error", "cosine"]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.02, 0.03, 0.025), "holds"),
        ((-0.02, -0.03, -0.025), "does not hold"),
        ((0.02, -0.03, 0.01), "not decided"),
        ((0.02, 0.02), "not decided"),  # two seeds that agree by luck
        ((0.02, 0.02, 0.02), "not decided"),  # an interval of no width
    ],
)
def test_verdicts(differences: tuple[float, ...], verdict: str) -> None:
    chosen = plan(rows=["L2", "BatchNorm"])
    last = {"L2": dict(enumerate([0.5] * len(differences)))}
    last["BatchNorm"] = {seed: 0.5 + more for seed, more in enumerate(differences)}
    cells = [Cell("cnn-32-cnn-4", row, 1.0, False, values, values, 1.0) for row, values in last.items()]
    (found,) = judge(tables.table("normalization").claims, chosen.pairs, cells)
    assert (found.better, found.worse, found.verdict) == ("BatchNorm", "L2", verdict)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(100 * sum(differences) / len(differences))


def test_the_claims_of_a_table_are_corrected_for_their_number() -> None:
    """A difference that would be shown alone (p = 0.035) is not, when two pairs are claimed at once."""
    last = {"L2": [0.5] * 3, "BatchNorm": [0.5 + more for more in (0.02, 0.03, 0.04)]}
    cells = [
        Cell(pair, row, 1.0, False, dict(enumerate(values)), dict(enumerate(values)), 1.0)
        for pair in ("a", "b")
        for row, values in last.items()
    ]
    claims = tables.table("normalization").claims
    assert [found.verdict for found in judge(claims, ["a"], cells)] == ["holds"]
    assert [found.verdict for found in judge(claims, ["a", "b"], cells)] == ["not decided"] * 2


def test_a_row_in_words() -> None:
    cell = Cell("R34-R18", "KL", 4.0, True, {0: 0.71, 1: 0.72}, {0: 0.72, 1: 0.73}, 12.3)
    chosen = make_plan("metrics", "full", {"data": "imagenet:images"}, rows=["KL"], seeds=[0, 1])
    (row,) = table_record(chosen, [cell], command="limbeck reproduce metrics")["rows"]
    assert cells_of(row) == ["KL", "71.50 ± 0.71", "65.1..77.9", "72.50", "x4*", "71.37", "12"]


ERRORS: Mapping[str, tuple[str, ...]] = {
    "no table 'alfa' (did you mean \"alpha\"?)": ("alfa",),
    "--rows: there is no 'alpha 9'": ("alpha", "--rows", "alpha 9"),
    "--pairs: there is no 'a-b'": ("alpha", "--scale", "tiny", "--pairs", "a-b"),
    "--seeds: expected a whole number from 1 to 10,000, got 0": ("alpha", "--seeds", "0"),
    "--seeds: expected 1 to 100": ("alpha", "--scale", "tiny", "--seeds", "101"),
    "--factors: expected one or more numbers above 0": ("alpha", "--scale", "tiny", "--factors", "0"),
    "--teacher-weights: of which teacher?": ("logsum", "--teacher-weights", "t.safetensors"),
    "--teacher-weights: there is no 'vgg8'; there are": ("logsum", "--teacher-weights", "vgg8=t"),
    "expected a share": ("alpha", "--subset", "2"),
}


@pytest.mark.parametrize(("message", "words"), ERRORS.items())
def test_wrong_words_are_told_in_one_line(
    message: str, words: tuple[str, ...], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert message.replace("expected a share", "subset:") in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda recipe: 0.5)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no table"):
        make(plan(), tmp_path)
    make(plan(), tmp_path / "a")
    other = make_plan("normalization", "tiny", {"epochs": 2}, seeds=[0])
    with pytest.raises(UserError, match=r"is a table with changes \{'epochs': 1\}, not \{'epochs': 2\}"):
        make(other, tmp_path / "a")


def test_a_table_may_get_more_teachers_but_no_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda recipe: 0.5)

    def of(**teachers: str) -> reproduce.Plan:
        words = [f"small/cnn-{name[1:]}={weights}" for name, weights in teachers.items()]
        return make_plan("logsum", "tiny", {"epochs": 1}, seeds=[0], factors=[1.0], teacher_weights=words)

    make(of(c8="a"), tmp_path)
    make(of(c8="a", c32="b"), tmp_path)
    with pytest.raises(UserError, match="is a table with teacher small/cnn-32 b, not c; choose another --out"):
        make(of(c8="a", c32="c"), tmp_path)


def test_the_command_makes_a_table_and_goes_on_with_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two rows of the digits, really trained; the second time there is nothing left to do."""
    words = ["reproduce", "normalization", "--scale", "tiny", "--rows", "no distillation", "BatchNorm", "--seeds", "1"]
    words += ["--factors", "1", "--epochs", "1", "--teacher-epochs", "1", "--device", "cpu"]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "[1/2, the seeds that count] small-cnn-4--alone-" in said
    own = tmp_path / "out" / "normalization-tiny"
    record = json.loads((own / "table.json").read_text())
    assert [row["row"] for row in record["rows"]] == ["no distillation", "BatchNorm"]
    assert all(row["last"]["n"] == 1 for row in record["rows"])
    assert record["claims"][0]["verdict"] == "not decided"
    assert len(record["devices"]) == 1
    assert (own / "table.md").read_text().startswith("### Normalization on both sides")
    assert "Normalization on both sides" in (own / "table.html").read_text()
    assert len(list((tmp_path / "out" / "runs" / "teachers").iterdir())) == 1
    assert max(map(len, said.splitlines())) <= 400
    assert main(words) == 0
    assert "the seeds that count]" not in capfd.readouterr().out


@pytest.mark.long
def test_a_transformer_with_two_heads_is_alone_with_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "deit", "--scale", "tiny", "--pairs", "stem", "--seeds", "1", "--factors", "1"]
    words += [
        "--epochs",
        "1",
        "--teacher-epochs",
        "3",
        "--subset",
        "0.3",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0, capfd.readouterr().err
    record = json.loads((tmp_path / "out" / "deit-tiny" / "table.json").read_text())
    names = {row["row"]: row["runs"]["0"].split("--")[0] for row in record["rows"]}
    assert names["student"] == "deit-conv_stem_test"
    assert names["KL"] == names["ours"] == "small-cnn-32-to-deit-conv_stem_test_distilled"


def test_the_cost_is_told_and_nothing_trained(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "normalization", "--scale", "tiny", "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "cnn-32-cnn-4: 27 runs" in said  # 5 rows x 3 seeds, and 3 weights for 4 of them
    assert not (tmp_path / "out").exists()
