"""When a failed call is tried again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from onnx_audit.errors import ServiceError, Unavailable

# Jitter keeps many clients from coming back at the same moment; nothing is computed from it.
_JITTER: Final = random.SystemRandom()


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, for answers that say the call may be repeated.

    Those are UNAVAILABLE, and any answer that itself says when to try again (RetryInfo).

    Attributes:
        attempts: Most attempts in all, at least 1; 1 means no retries. An upload, download or watch
            that got on since its last break starts counting anew.
        initial_delay: Seconds before the second attempt.
        multiplier: Growth of the delay from one attempt to the next.
        max_delay: Longest delay in seconds, unless the service asks for a longer one.
        patience: Longest delay in seconds that the service may ask for; an answer that asks for
            more, as of a full store, is not tried again.
    """

    attempts: int = 7
    initial_delay: float = 0.25
    multiplier: float = 2.0
    max_delay: float = 8.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.initial_delay < 0 or self.multiplier < 1:
            raise ValueError(
                f"{self}: attempts and multiplier must be at least 1 and delays not negative"
            )

    def delay(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row: between half and all of the step."""
        step = min(self.initial_delay * self.multiplier ** (failures - 1), self.max_delay)
        return step * _JITTER.uniform(0.5, 1.0)


class Attempts:
    """Counts the failures of one operation and says how long to wait after each."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0

    def reset(self) -> None:
        """Starts counting anew: the operation got on."""
        self._failures = 0

    def delay_after(self, error: ServiceError, *, repeatable: bool = False) -> float:
        """Seconds to wait before the next attempt.

        Args:
            error: Why the last attempt failed.
            repeatable: The operation may go on after this error although it is not UNAVAILABLE.

        Raises:
            ServiceError: `error` itself, if it must not be retried or the attempts are used up.
        """
        self._failures += 1
        retriable = repeatable or isinstance(error, Unavailable) or error.retry_delay is not None
        asked = error.retry_delay or 0.0
        if (
            not retriable
            or self._failures >= self._policy.attempts
            or asked > self._policy.patience
        ):
            raise error
        return max(self._policy.delay(self._failures), asked)
