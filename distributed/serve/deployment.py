"""The HTTP application as a Ray Serve application: for `serve deploy docs/deploy/serve.yaml`, and for the command.

A replica is a process with a bundle, a queue and batches of its own. Ray Serve's proxies spread requests over replicas.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException

from model.errors import RunFailedError, UserError, first_line
from model.serving.settings import ServeSettings

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION, DEPLOYMENT = "tandem", "extraction"
_TARGET_REQUESTS = 32  # of a replica; autoscaling adds one where more are worked on, since a batch holds about as many


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what each requests.

    Attributes:
        fewest, most: if they differ, Ray Serve scales between them.
        cpus: of each.
        gpus: of each; a fraction lets several share a GPU.
    """

    fewest: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0

    def options(self) -> dict[str, Any]:
        """Return the options of the deployment."""
        actor = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.fewest == self.most:
            return {"num_replicas": self.most, "ray_actor_options": actor}
        scaling = AutoscalingConfig(
            min_replicas=self.fewest, max_replicas=self.most, target_ongoing_requests=_TARGET_REQUESTS
        )
        return {"autoscaling_config": scaling, "ray_actor_options": actor}


class Replica:
    """What Ray Serve asks of a replica besides HTTP. `app` is the application, which `serve.ingress` sets."""

    app: Any
    _generation: object = None

    async def reload(self) -> None:
        """Read tokens and bundle again. Raises UserError; the replica is then as before."""
        await self.app.state.service.reload()

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Reload when `user_config` has changed: a deployment with another one takes in a new bundle without a restart."""
        if self._generation not in (None, config):
            await self.reload()
        self._generation = config

    def check_health(self) -> None:
        """Raise where the replica has to be replaced."""
        if not self.app.state.service.alive:
            raise RuntimeError("the process that extracts has ended")


async def reload_replicas() -> None:
    """Make all replicas read tokens and bundle again.

    Raises:
        UserError: one of them cannot; it is then as before.
        RunFailedError: one of them died.
    """
    handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    try:
        await handle.broadcast("reload").results_async()
    except UserError as error:
        line = str(error).strip().splitlines()[-1]  # below the traceback of the replica
        raise UserError(line.removeprefix("model.errors.UserError: ")) from None
    except (RayError, RayServeException) as error:
        raise RunFailedError(
            f"not every replica has taken the bundle in: a replica died ({first_line(error)}); Ray starts another one"
        ) from None


def make_application(settings: ServeSettings, replicas: Replicas | None = None) -> "Application":
    """Return the application.

    Args:
        settings: of each replica. Each reads bundle and tokens from there, so every node needs to see both.
        replicas: their number and resources; None leaves both to the configuration file of `serve deploy`.
    """

    def build() -> Any:
        from model.serving.app import build_app
        from model.serving.service import Service

        service = Service(settings)
        service.load()
        return build_app(service, reload_replicas)

    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name=DEPLOYMENT,
        max_ongoing_requests=settings.max_requests,
        max_queued_requests=settings.max_requests,  # without a limit, which is Ray's default, an overload would fill memory
        graceful_shutdown_timeout_s=settings.deadline + 1,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        logging_config={"enable_access_log": False},
        **(replicas.options() if replicas else {}),
    )
    return deployment.bind()


def build(settings: ServeSettings) -> "Application":
    """Return the application with the arguments of docs/deploy/serve.yaml."""
    return make_application(settings)
