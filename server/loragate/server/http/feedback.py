"""The body of `/v1/feedback`."""

from typing import Annotated

from pydantic import Field

from loragate.server.experiments.feedback import LONGEST_COMMENT, Feedback
from loragate.server.http.requests import Body


class FeedbackBody(Body):
    """What somebody thought of an answer. Sent twice, it counts once."""

    request_id: Annotated[
        str, Field(min_length=1, max_length=128, description="The answer's x-request-id.")
    ]
    metric: Annotated[
        str,
        Field(
            max_length=64,
            description="thumbs or escalated (0 or 1); rating, accuracy, helpfulness or tone "
            "(1 to 5); or comment.",
        ),
    ]
    value: Annotated[
        float | None, Field(allow_inf_nan=False, description="None for a comment.")
    ] = None
    comment: Annotated[str, Field(max_length=LONGEST_COMMENT)] = ""

    def to_feedback(self) -> Feedback:
        return Feedback(self.request_id, self.metric, self.value, self.comment)
