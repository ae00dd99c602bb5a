"""The address of a cluster: RAY_ADDRESS, checked before Ray is asked to connect.

Ray waits for more than a minute for an address where nothing answers, and no signal ends that wait.
"""

import os

from distributed.cluster.ray_internals import HeadReply, ask_head, find_head
from model.errors import RunFailedError, UserError

_HERE = "unset it to use this machine alone"


def cluster_address() -> str | None:
    """Return the address in RAY_ADDRESS, which Ray sets for a submitted job; None for a cluster on this machine alone."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address == "local" else address or None


def require_gpu_of_ray(device: str) -> None:
    """Raise UserError for a GPU by its number on a cluster: Ray would place the process on any node, and count no GPU."""
    if cluster_address() and device.startswith("cuda:"):
        raise UserError(f"--device {device}: on a cluster, Ray gives each process its GPU; use --device cuda")


def require_cluster(address: str) -> None:
    """Check that a Ray answers at an address, and lets this process in.

    Args:
        address: the value of RAY_ADDRESS.

    Raises:
        UserError: the address cannot be that of a cluster, or the cluster requires a token.
        RunFailedError: nothing answers there.
    """
    where = f"RAY_ADDRESS={address}"
    if address.startswith(("http://", "https://")):
        raise UserError(f"{where}: is an address for `ray job submit`; {_HERE}, or submit this command as a job")
    if "://" in address:
        raise UserError(
            f"{where}: is for Ray Client, through which training does not run; {_HERE}, or run this command on a node of the "
            f"cluster with RAY_ADDRESS=auto"
        )
    try:
        head = find_head(address)
    except ConnectionError:
        raise UserError(
            f"{where}: no Ray runs on this machine; start one with `ray start --head`, or {_HERE}"
        ) from None
    except ValueError:
        raise UserError(f"{where}: is no address; write auto or HOST:PORT, as in 10.0.0.1:6379, or {_HERE}") from None
    reply = ask_head(head)
    if reply is HeadReply.SILENT:
        raise RunFailedError(f"{where}: no Ray answers there; check address and port (6379 by default), or {_HERE}")
    if reply is HeadReply.UNAUTHENTICATED:
        raise UserError(
            f"{where}: the cluster requires a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the "
            f"cluster's token"
        )
