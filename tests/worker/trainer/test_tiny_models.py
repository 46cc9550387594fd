from pathlib import Path

from worker.trainer.tiny_models import build_tiny_flux


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_bytes_depend_on_the_seed_only(tmp_path: Path) -> None:
    one, same, other = (
        files(build_tiny_flux(tmp_path / name, seed=seed))
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same
    assert one.keys() == other.keys()
    assert (
        one["vae/diffusion_pytorch_model.safetensors"]
        != (other["vae/diffusion_pytorch_model.safetensors"])
    )


def test_tiny_model_is_small_and_readable(tiny_flux: Path) -> None:
    paths = [path for path in tiny_flux.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) < 2_000_000
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in paths)
