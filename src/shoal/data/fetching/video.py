"""Video from package registries."""

from pathlib import Path

from shoal.data.cache import Say
from shoal.data.entry import Entry
from shoal.data.fetching.tools import debian, missing
from shoal.errors import need

WIDTH, HEIGHT = 96, 72


def vtest(work: Path, files: Path, say: Say) -> None:
    """People crossing a square, filmed from a roof: 795 frames, ten a second, made small and grey.

    The pictures that come out are pictures of the whole scene: averages of 8x8 pixels.
    """
    cv2 = need("cv2", "video", "the corpus 'vtest'")
    root = debian("vtest", "opencv-doc", work, say)
    video = cv2.VideoCapture(str(root / "usr/share/doc/opencv-doc/examples/data/vtest.avi"))
    clip = files / "vtest"
    clip.mkdir()
    count = 0
    while True:
        there, frame_HWC = video.read()
        if not there:
            break
        count += 1
        grey_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_BGR2GRAY)
        small_HW = cv2.resize(grey_HW, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(clip / f"{count:04}.png"), small_HW)
    video.release()
    if count < 700:
        raise missing("vtest", f"only {count} frames of vtest.avi can be read")


ENTRIES = (
    Entry(
        name="vtest",
        kind="video",
        what="people crossing a square, 795 frames of 96x72",
        licence="Apache-2.0 and BSD-3-Clause (OpenCV's documentation)",
        size="4 MB",
        how="apt-get download opencv-doc (96 MB)",
        version=lambda: "1",
        write=vtest,
    ),
)
