"""``python -m fish_lightning``: which programs there are."""

PROGRAMS = {
    "train": "train, validate and test a model; data.root=DIR data=folder for your own images",
    "evaluate": "score a trained model on its own test images or on others: ckpt=RUN",
    "predict": "predict the classes of images: ckpt=RUN input=FILE|DIR",
    "prepare": "get a data set, check its images, find near-duplicates: data=folder data.root=DIR",
    "ensemble": "average the predictions of several runs: runs=SWEEP",
    "export": "write a trained model as one ONNX file, and verify that it matches the checkpoint: ckpt=RUN",
    "compare": "is one model better than another on the same test images: a=RUN b=RUN",
    "serve": "answer requests, on a page and an API: model=RUN",
}


def main() -> None:
    """List the programs."""
    for name, purpose in PROGRAMS.items():
        print(f"python -m fish_lightning.{name:<9} {purpose}")
    print("\n--help lists the choices of a program, --cfg job shows all its settings")


if __name__ == "__main__":
    main()
