"""What each call needs. One that stands in neither table needs the highest role: a new method is shut until it is put
in its place here, and a test says so.
"""

from __future__ import annotations

from server.security.keys import Role

_OURS = "/coldframe.v1."
_ROLES = {
    Role.READ: (
        "EmbeddingService/Embed",
        "EmbeddingService/StreamEmbed",
        "SearchService/Search",
        "SearchService/Recommend",
        "SearchService/BatchSearch",
        "SearchService/StreamSearch",
        "SearchService/NearestClusters",
        "ClusterService/ListClusters",
        "ClusterService/GetCluster",
        "ClusterService/ListClusterArticles",
        "ClusterService/TrendingClusters",
        "ArticleService/GetArticle",
        "IndexService/GetIndex",
    ),
    Role.WRITE: (
        "ArticleService/UpsertArticles",
        "ArticleService/StreamUpsertArticles",
        "ArticleService/DeleteArticles",
    ),
    Role.ADMIN: ("IndexService/ActivateGeneration",),
}
BY_METHOD = {f"{_OURS}{name}": role for role, names in _ROLES.items() for name in names} | {
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": Role.READ for version in ("v1", "v1alpha")
}
_OPEN = "/grpc.health.v1.Health/"


def needed(method: str) -> Role | None:
    """The role that a call needs; None for health, which probes ask for without a key, and which tells nothing else."""
    return None if method.startswith(_OPEN) else BY_METHOD.get(method, Role.ADMIN)


def audited(method: str) -> bool:
    """Whether a call leaves a line in the audit log."""
    role = needed(method)
    return role is not None and role is not Role.READ
