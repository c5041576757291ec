"""Image files to uint8 RGB arrays, in several processes.

The worker processes import this module, so it stays free of torch, which takes seconds to import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from rotnet_fast.errors import DataError

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # Pillow's names, all of 8 bits or fewer
_FILES_PER_CHUNK = 128
_FILES_PER_WORKER = 512  # fewer are decoded before another process has started


def decode_image(file: str | bytes, image_size: int, name: str | None = None) -> npt.NDArray[np.uint8]:
    """One JPEG or PNG as uint8 [image_size, image_size, 3].

    The pixels of :func:`decode_rgb`. An image of image_size x image_size keeps them; another is resized
    (bilinear, with antialiasing) until its shorter side is image_size, and its centre is cut out.

    Args:
        file: a path, or what such a file holds.
        image_size: H = W of the result in pixels.
        name: what errors call the image; None for the path.

    Raises:
        DataError: see :func:`decode_rgb`.
    """
    with _rgb(file, name) as image:
        return np.asarray(_resize_and_crop(image, image_size))


def decode_rgb(file: str | bytes, name: str | None = None) -> npt.NDArray[np.uint8]:
    """One JPEG or PNG in its own size, as uint8 [H,W,3].

    The camera's orientation tag is applied: this project's labels are about which way is up. Grey,
    palette and CMYK images become RGB; transparent parts are laid on black, the colour of the crop's
    padding; of 16 bits per channel the upper eight are taken.

    Args:
        file: a path, or what such a file holds.
        name: what errors call the image; None for the path.

    Raises:
        DataError: the file is missing, damaged, neither JPEG nor PNG, or a grey image of 16 bits.
    """
    with _rgb(file, name) as image:
        return np.asarray(image)


def encode_ppm(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Pixels uint8 [H,W,3] as a PPM file: any decoder gives the very same ones, and writing costs nothing."""
    height, width, _ = rgb.shape
    return b"P6 %d %d 255\n" % (width, height) + rgb.tobytes()


@contextmanager
def _rgb(file: str | bytes, name: str | None) -> Iterator[Image.Image]:
    """The upright RGB image; errors in the block are the file's, too, as Pillow may read it late."""
    if name is None:
        name = file if isinstance(file, str) else "an image"
    try:
        with Image.open(file if isinstance(file, str) else BytesIO(file), formats=("JPEG", "PNG")) as stored:
            image: Image.Image = stored
            if image.mode not in MODES:
                raise DataError(f"{name} {deep_grey(image.mode)}")
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
            yield _to_rgb(image)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise DataError(f"{name} cannot be read as an image: {error}; repair or remove it") from error


def deep_grey(mode: str) -> str:
    """Why an image is refused whose mode is not in ``MODES``."""
    # 16-bit greys often use 10 or 12 bits only: no rule for 8 bits is right for all of them.
    return f"has pixels of mode {mode}; save it with 8 bits per channel"


def decode_images(paths: Sequence[str], image_size: int, progress: bool) -> npt.NDArray[np.uint8]:
    """Many files as uint8 [len(paths), image_size, image_size, 3], decoded on all available cores.

    Processes, not threads: for small images nearly all the time goes to Python code, and two threads were
    slower than one. They are spawned, not forked, as torch's threads do not survive a fork; so a
    script that calls this for more than a thousand files needs the ``if __name__ == "__main__":`` guard.

    Raises:
        DataError: see :func:`decode_image`, for the first such file in order; or a process was killed.
    """
    images = np.empty((len(paths), image_size, image_size, 3), dtype=np.uint8)
    chunks = [paths[start : start + _FILES_PER_CHUNK] for start in range(0, len(paths), _FILES_PER_CHUNK)]
    sizes = [image_size] * len(chunks)
    workers = min(_available_cores(), len(paths) // _FILES_PER_WORKER)
    with tqdm(total=len(paths), unit="image", desc="decoding", disable=not progress) as bar:
        if workers < 2:
            _collect(map(_decode_chunk, chunks, sizes), images, bar)
            return images
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        try:
            _collect(pool.map(_decode_chunk, chunks, sizes), images, bar)
        except BrokenProcessPool as error:
            raise DataError(
                "a decoding process ended before its work was done: out of memory, or called from a script "
                'without an `if __name__ == "__main__":` guard'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return images


def _collect(decoded: Iterable[npt.NDArray[np.uint8]], images: npt.NDArray[np.uint8], bar: tqdm) -> None:
    done = 0
    for part in decoded:
        images[done : done + len(part)] = part
        done += len(part)
        bar.update(len(part))


def _decode_chunk(paths: Sequence[str], image_size: int) -> npt.NDArray[np.uint8]:
    return np.stack([decode_image(path, image_size) for path in paths])


def _available_cores() -> int:
    """Cores this process may use, which in a container or under taskset are not all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and do not outlive it where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only ever called in a worker process"
    parent.join()
    os._exit(1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    if image.size == (image_size, image_size):
        return image
    scale = image_size / min(image.size)
    width, height = (max(image_size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))
