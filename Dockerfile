# The image of every node, head and workers: docker build -t your-registry/mmvp-ray:0.1.0-ray2.60.0 .
#
# The base is Ray's image without CUDA on purpose. PyTorch's wheels bring CUDA 13 and faiss-gpu's bring CUDA 12, each in libraries of its
# own; a toolkit of the -cu1xx images would be a third, of several GB, that nothing loads. What a GPU node must have is a driver that
# runs the newer of the two: 580 or later, on a GPU of compute capability 7.5 (Turing) or later. docs/clusters.md has the table.
ARG RAY_VERSION=2.60.0
FROM rayproject/ray:${RAY_VERSION}-py312
# Once more: an ARG before FROM is gone after it.
ARG RAY_VERSION

# As in NVIDIA's own images; NVIDIA's container runtime reads them. An older driver is refused at the start, and not found out by a slow run.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0" \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 \
    PYTHONUNBUFFERED=1

# The base's user `ray`, by number, so that Kubernetes can see that it is not root.
USER 1000:100
WORKDIR /home/ray/mmvp-ray

# Dependencies first: they are gigabytes, and change less often than the code. Ray stays the base's, to the patch release; boto3, which the
# base has for its cluster launcher, follows the botocore that s3fs wants.
COPY --chown=1000:100 pyproject.toml ./
# Compiled here, once: else every worker of every new pod compiles PyTorch before its first task.
RUN pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --compile-bytecode -r pyproject.toml "ray==${RAY_VERSION}" boto3

COPY --chown=1000:100 README.md LICENSE ./
COPY --chown=1000:100 mmvp_ray ./mmvp_ray
COPY --chown=1000:100 configs ./configs
COPY --chown=1000:100 jobs ./jobs
RUN uv pip install --system --no-cache --compile-bytecode --no-deps . \
    && python -c "import faiss, mmvp_ray, ray, torch; assert ray.__version__ == '${RAY_VERSION}', ray.__version__; assert torch.version.cuda.startswith('13.'), torch.version.cuda"
