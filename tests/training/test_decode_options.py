"""train.py where decoding is the limit: a cache changes no loss, several clips of a video are part of the run."""

from pathlib import Path

from tests.training.harness import TOY, losses, train

CLIPS = (*TOY, "--batch-size", 4, "--clips-per-decode", 2)


def test_a_run_with_caches_and_several_clips_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags = (*CLIPS, "--data", data, "--output", run, "--resume")
    first = train(*flags, "--steps", 2, "--cache", "host", "--cache-gib", 0.02)
    assert first.status == 0 and "--cache host: " in first.said and " of 18 videos are kept" in first.said
    other = train(*flags, "--clips-per-decode", 4, "--steps", 5)
    assert other.status and "clips_per_decode 2 → 4" in other.said
    assert train(*flags, "--steps", 5).status == 0
    assert train(*CLIPS, "--data", data, "--output", whole, "--steps", 5).status == 0
    assert losses(run) == losses(whole) and len(losses(whole)) == 5


def test_what_does_not_go_together_ends_in_one_line(data: Path, tmp_path: Path) -> None:
    for number, (flags, said) in enumerate(
        (
            (("--clips-per-decode", 3), "--clips-per-decode 3: must be at least 1 and divide --batch-size 4"),
            (("--cache", "gpu"), "--cache gpu: with --device cpu"),
            (("--cache", "host", "--cache-gib", 0), "--cache-gib 0: must be above 0"),
        )
    ):
        done = train(
            *TOY, "--batch-size", 4, "--steps", 1, "--data", data, "--output", tmp_path / str(number), *flags
        )
        assert done.status == 2 and said in done.said and "Traceback" not in done.said, done.said
