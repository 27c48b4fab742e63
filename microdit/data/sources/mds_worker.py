"""Send samples of an MDS folder to the parent process; run in mosaicml-streaming's own environment.

`python mds_worker.py FOLDER` writes a frame with the number of samples and the columns. Then, for each line "START STOP
COLUMN..." on standard input, it writes one frame per sample. A frame is a JSON object on a line, followed by the bytes
whose sizes are in its `sizes`.
"""

import json
import sys


def main(folder: str) -> None:
    """Answer requests until standard input ends."""
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # keeps the library's output out of the frames
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=folder, remote=None, shuffle=False, batch_size=1)
    shards = dataset.shards
    columns = dict(zip(shards[0].column_names, shards[0].column_encodings))  # noqa: B905, another Python may run it
    out.write(json.dumps({"count": len(dataset), "columns": columns}).encode() + b"\n")
    out.flush()
    for line in sys.stdin:
        start, stop, *names = line.split()
        for i in range(int(start), int(stop)):
            sample = dataset[i]
            parts = [sample[name] for name in names]
            frame = {"caption": sample.get("caption"), "sizes": [len(part) for part in parts]}
            out.write(json.dumps(frame).encode() + b"\n" + b"".join(parts))
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1])
