import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Trial(_message.Message):
    __slots__ = ("id", "kind", "adapter", "state", "reason", "arms", "gates", "steps", "step", "created_at", "ended_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    id: int
    kind: str
    adapter: str
    state: str
    reason: str
    arms: _containers.RepeatedCompositeFieldContainer[Arm]
    gates: _containers.RepeatedScalarFieldContainer[str]
    steps: _containers.RepeatedScalarFieldContainer[float]
    step: int
    created_at: _timestamp_pb2.Timestamp
    ended_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[int] = ..., kind: _Optional[str] = ..., adapter: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[Arm, _Mapping]]] = ..., gates: _Optional[_Iterable[str]] = ..., steps: _Optional[_Iterable[float]] = ..., step: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Arm(_message.Message):
    __slots__ = ("name", "answers", "mode", "share")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    name: str
    answers: str
    mode: str
    share: float
    def __init__(self, name: _Optional[str] = ..., answers: _Optional[str] = ..., mode: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class StartRolloutRequest(_message.Message):
    __slots__ = ("adapter", "to", "steps", "every_seconds", "gates", "alpha", "shadow", "merged")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVERY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    to: str
    steps: _containers.RepeatedScalarFieldContainer[float]
    every_seconds: float
    gates: _containers.RepeatedScalarFieldContainer[str]
    alpha: float
    shadow: float
    merged: bool
    def __init__(self, adapter: _Optional[str] = ..., to: _Optional[str] = ..., steps: _Optional[_Iterable[float]] = ..., every_seconds: _Optional[float] = ..., gates: _Optional[_Iterable[str]] = ..., alpha: _Optional[float] = ..., shadow: _Optional[float] = ..., merged: _Optional[bool] = ...) -> None: ...

class StartRolloutResponse(_message.Message):
    __slots__ = ("trial",)
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    trial: Trial
    def __init__(self, trial: _Optional[_Union[Trial, _Mapping]] = ...) -> None: ...

class StartExperimentRequest(_message.Message):
    __slots__ = ("adapter", "arms", "gates", "alpha", "shadow", "automatic", "values")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    GATES_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    AUTOMATIC_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    arms: _containers.RepeatedScalarFieldContainer[str]
    gates: _containers.RepeatedScalarFieldContainer[str]
    alpha: float
    shadow: float
    automatic: bool
    values: int
    def __init__(self, adapter: _Optional[str] = ..., arms: _Optional[_Iterable[str]] = ..., gates: _Optional[_Iterable[str]] = ..., alpha: _Optional[float] = ..., shadow: _Optional[float] = ..., automatic: _Optional[bool] = ..., values: _Optional[int] = ...) -> None: ...

class StartExperimentResponse(_message.Message):
    __slots__ = ("trial",)
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    trial: Trial
    def __init__(self, trial: _Optional[_Union[Trial, _Mapping]] = ...) -> None: ...

class ListTrialsRequest(_message.Message):
    __slots__ = ("tenant", "kind", "limit", "after")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    kind: str
    limit: int
    after: str
    def __init__(self, tenant: _Optional[str] = ..., kind: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListTrialsResponse(_message.Message):
    __slots__ = ("trials", "next_after")
    TRIALS_FIELD_NUMBER: _ClassVar[int]
    NEXT_AFTER_FIELD_NUMBER: _ClassVar[int]
    trials: _containers.RepeatedCompositeFieldContainer[Trial]
    next_after: str
    def __init__(self, trials: _Optional[_Iterable[_Union[Trial, _Mapping]]] = ..., next_after: _Optional[str] = ...) -> None: ...

class GetTrialRequest(_message.Message):
    __slots__ = ("adapter", "kind")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    kind: str
    def __init__(self, adapter: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class GetTrialResponse(_message.Message):
    __slots__ = ("trial", "verdicts", "text", "html")
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    HTML_FIELD_NUMBER: _ClassVar[int]
    trial: Trial
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    text: str
    html: str
    def __init__(self, trial: _Optional[_Union[Trial, _Mapping]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., text: _Optional[str] = ..., html: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("challenger", "decision", "reason", "missing")
    CHALLENGER_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    challenger: str
    decision: str
    reason: str
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, challenger: _Optional[str] = ..., decision: _Optional[str] = ..., reason: _Optional[str] = ..., missing: _Optional[_Iterable[str]] = ...) -> None: ...

class ChangeTrialRequest(_message.Message):
    __slots__ = ("adapter", "action", "arm", "reason", "kind")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[ChangeTrialRequest.Action]
        ACTION_PAUSE: _ClassVar[ChangeTrialRequest.Action]
        ACTION_RESUME: _ClassVar[ChangeTrialRequest.Action]
        ACTION_ABORT: _ClassVar[ChangeTrialRequest.Action]
        ACTION_PROMOTE: _ClassVar[ChangeTrialRequest.Action]
        ACTION_ROLLBACK: _ClassVar[ChangeTrialRequest.Action]
        ACTION_DECIDE: _ClassVar[ChangeTrialRequest.Action]
    ACTION_UNSPECIFIED: ChangeTrialRequest.Action
    ACTION_PAUSE: ChangeTrialRequest.Action
    ACTION_RESUME: ChangeTrialRequest.Action
    ACTION_ABORT: ChangeTrialRequest.Action
    ACTION_PROMOTE: ChangeTrialRequest.Action
    ACTION_ROLLBACK: ChangeTrialRequest.Action
    ACTION_DECIDE: ChangeTrialRequest.Action
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    action: ChangeTrialRequest.Action
    arm: str
    reason: str
    kind: str
    def __init__(self, adapter: _Optional[str] = ..., action: _Optional[_Union[ChangeTrialRequest.Action, str]] = ..., arm: _Optional[str] = ..., reason: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class ChangeTrialResponse(_message.Message):
    __slots__ = ("trial",)
    TRIAL_FIELD_NUMBER: _ClassVar[int]
    trial: Trial
    def __init__(self, trial: _Optional[_Union[Trial, _Mapping]] = ...) -> None: ...
