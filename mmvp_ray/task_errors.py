"""What a task of Ray's raised, out of what Ray wraps around it."""

from __future__ import annotations

from collections.abc import Iterator

from mmvp_ray.errors import MmvpError, ResourceError


def task_error(error: BaseException) -> BaseException:
    """As `own_error`, and a ResourceError where the process of a task died as often as Ray tries it, or Ray has no room for its result."""
    import ray

    own = own_error(error)
    if own is not error:
        return own
    for found in _wrapped(error):
        line = (str(found).strip() or type(found).__name__).split("\n", 1)[0][:300]
        if isinstance(found, (ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError)):
            return ResourceError(
                f"expected room for what tasks give each other, found Ray's memory and its disk full ({line}); free the disk that Ray's "
                "temporary folder lies on (/tmp/ray unless set), on each node"
            )
        if isinstance(found, (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)):
            return ResourceError(
                f"expected processes that outlive their tasks, found that one died ({line}), and so did those that tried again; "
                "see whether the workers have memory enough, and Ray's logs"
            )
    return error


def own_error(error: BaseException) -> BaseException:
    """The MmvpError inside the wrappers that Ray puts around what a task raised; `error` itself if there is none."""
    for found in _wrapped(error):
        # Ray makes one class out of its own and the task's; the plain one is in `cause`.
        if isinstance(found, MmvpError) and not hasattr(found, "cause"):
            # Ray Data appends advice of its own; our messages are one line.
            return type(found)(str(found).split("\n", 1)[0])
    return error


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was raised from."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        found = queue.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        queue += [found.__cause__, found.__context__, getattr(found, "cause", None)]
