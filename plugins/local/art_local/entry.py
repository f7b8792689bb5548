"""The backend, for who asks for it by name: torch's threads are told how to wait before torch is
imported, which reads it once.
"""

from art_local.threads import wait_asleep

wait_asleep()

from art_local.backend import LocalBackend  # noqa: E402

__all__ = ["LocalBackend"]
