"""Show progress as a bar at a terminal, or as plain lines in a log file."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

PLAIN_SECONDS = 10.0  # between lines of a log file


class Progress:
    """Show step, loss, images/s and the time left, if `enabled`."""

    def __init__(self, steps: int, first: int, enabled: bool) -> None:
        self.steps = steps
        self._bar = None
        self._plain = enabled and not sys.stderr.isatty()
        self._printed = time.monotonic()
        if enabled and not self._plain:
            self._bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True, desc="training")

    def update(self, step: int, loss: float, images_per_second: float, seconds_left: float) -> None:
        """Update the display at a logged step.

        Args:
            step: finished steps.
            loss: mean since the last update.
            images_per_second: over all processes.
            seconds_left: estimated time to the last step.
        """
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", images_s=f"{images_per_second:.0f}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._plain and (step == self.steps or time.monotonic() - self._printed >= PLAIN_SECONDS):
            self._printed = time.monotonic()
            print(
                f"step {step}/{self.steps}  loss {loss:.4f}  {images_per_second:.0f} images/s  "
                f"{format_seconds(seconds_left)} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Close the bar, leaving it on the screen."""
        if self._bar is not None:
            self._bar.close()


def format_seconds(seconds: float) -> str:
    """Return seconds as 1:02:03 or 2:03; negative ones as 0:00.

    Args:
        seconds: rounded to the nearest integer.
    """
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
