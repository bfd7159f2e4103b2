"""Schemas of the custom resources in deploy/: only the fields that are used there, under the names that KubeRay 1.6
(ray.io/v1) and the Prometheus operator (monitoring.coreos.com/v1) give them. Pod templates are checked as Pods, by
Kubernetes' own schema."""


def mapping(required=(), **properties):
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = mapping(["name"], name=TEXT, labels=TEXTS)
POD_TEMPLATE = {"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object"}}}

_RAY_CLUSTER = mapping(
    ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=mapping(["mode"], mode={"const": "token"}),
    headGroupSpec=mapping(
        ["rayStartParams", "template"],
        serviceType={"const": "ClusterIP"},
        rayStartParams=TEXTS,
        template=POD_TEMPLATE,
    ),
    workerGroupSpecs={
        "type": "array",
        "minItems": 1,
        "items": mapping(
            ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD_TEMPLATE,
        ),
    },
)


def _resource(version, spec):
    return mapping(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": version},
        kind=TEXT,
        metadata=METADATA,
        spec=spec,
    )


SCHEMAS = {
    "RayCluster": _resource("ray.io/v1", _RAY_CLUSTER),
    "RayJob": _resource(
        "ray.io/v1",
        mapping(
            ["entrypoint", "rayClusterSpec"],
            entrypoint=TEXT,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
            backoffLimit=COUNT,
            activeDeadlineSeconds={"type": "integer", "minimum": 1},
            shutdownAfterJobFinishes={"type": "boolean"},
            ttlSecondsAfterFinished=COUNT,
            submitterPodTemplate=POD_TEMPLATE,
            rayClusterSpec=_RAY_CLUSTER,
        ),
    ),
    "PodMonitor": _resource(
        "monitoring.coreos.com/v1",
        mapping(
            ["selector", "podMetricsEndpoints"],
            jobLabel=TEXT,
            selector=mapping(["matchLabels"], matchLabels=TEXTS),
            podMetricsEndpoints={
                "type": "array",
                "minItems": 1,
                "items": mapping(
                    ["port"],
                    port=TEXT,
                    path={"type": "string", "pattern": "^/"},
                    interval={"type": "string", "pattern": r"^\d+(ms|s|m)$"},
                    scrapeTimeout={"type": "string", "pattern": r"^\d+(ms|s|m)$"},
                    authorization=mapping(
                        ["credentials"],
                        type={"const": "Bearer"},
                        credentials=mapping(["name", "key"], name=TEXT, key=TEXT),
                    ),
                ),
            },
        ),
    ),
}
