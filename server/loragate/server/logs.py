"""One JSON object a line on standard error: never prompts, answers or keys."""

import logging
import sys
from datetime import UTC, datetime

import msgspec

# Extra fields that a log call may attach; whatever else it attaches is not written.
_FIELDS = ("request_id", "method", "path", "status", "duration_seconds", "adapter", "tenant")


class JsonFormatter(logging.Formatter):
    """Time (UTC), level, logger, message, the known extra fields, a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for field in _FIELDS:
            value: object = getattr(record, field, None)
            if value is not None:
                line[field] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure_logs(level: str) -> None:
    """Sends every logger of this process through one JSON handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "asyncio", "alembic", "vllm"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
