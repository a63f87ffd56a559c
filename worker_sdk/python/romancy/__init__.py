"""Romancy: durable execution. Workflows survive crashes, and what they did is undone in reverse order when they fail.

Names are imported when they are first used, so that `romancy.v1`, the contract, can be had without the SDK.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from romancy.activity import (
        ActivityDefinition,
        ActivityInfo,
        activity,
        activity_info,
        compensation,
        heartbeat,
        is_cancelled,
        send_event,
    )
    from romancy.attributes import Attribute
    from romancy.channels import ChannelInfo, Message
    from romancy.children import Child, OtherWorkflow
    from romancy.client import Client
    from romancy.context import Cancellation, WorkflowContext, WorkflowInfo
    from romancy.elsewhere import ActivityRef
    from romancy.errors import (
        ActivityCancelled,
        ActivityError,
        ActivityLost,
        ActivityTimeout,
        ApplicationError,
        ChannelModeConflict,
        ChildCancelled,
        ChildError,
        ChildNotStarted,
        CompensationError,
        CompleteElsewhere,
        ConversionError,
        DefinitionError,
        Divergence,
        EventTimeout,
        InvalidCall,
        MessageTimeout,
        NonDeterminism,
        NothingDone,
        OutsideActivity,
        OutsideWorkflow,
        QueryError,
        RemoteError,
        RomancyError,
        SendError,
        StepError,
        TerminalError,
        UpdateError,
        UpdateRejected,
        WorkflowCancelled,
        WorkflowError,
        WorkflowFailed,
        WorkflowTaskError,
        WorkflowTerminated,
        WorkflowTimedOut,
    )
    from romancy.events import Event, EventStream
    from romancy.handle import WorkflowHandle
    from romancy.options import ActivityOptions, RetryPolicy
    from romancy.outbox import Outbox, OutboxEvent, SinkInfo
    from romancy.refusals import (
        AccessDenied,
        ActivityStale,
        ChannelNotFound,
        CompensationNotFound,
        DeadLetterNotFound,
        EventRuleNotFound,
        InvalidRequest,
        LimitReached,
        QueryTimeout,
        RequestIdReused,
        RequestRefused,
        ScheduleChanged,
        ScheduleExists,
        ScheduleNotFound,
        ServiceBusy,
        ServiceFailed,
        ServiceUnavailable,
        SinkNotFound,
        UpdateAborted,
        WorkflowAlreadyOpen,
        WorkflowClosed,
        WorkflowIdUsed,
        WorkflowNotFound,
        WorkflowOpen,
    )
    from romancy.schedules import Cron, Every, ScheduleHandle
    from romancy.worker import Worker, WorkerStopped
    from romancy.workflow import (
        DeterminismWarning,
        WorkflowDefinition,
        unguarded,
        workflow,
    )

__all__ = [
    "AccessDenied",
    "ActivityCancelled",
    "ActivityDefinition",
    "ActivityError",
    "ActivityInfo",
    "ActivityLost",
    "ActivityOptions",
    "ActivityRef",
    "ActivityStale",
    "ActivityTimeout",
    "ApplicationError",
    "Attribute",
    "Cancellation",
    "ChannelInfo",
    "ChannelModeConflict",
    "ChannelNotFound",
    "Child",
    "ChildCancelled",
    "ChildError",
    "ChildNotStarted",
    "Client",
    "CompensationError",
    "CompensationNotFound",
    "CompleteElsewhere",
    "ConversionError",
    "Cron",
    "DeadLetterNotFound",
    "DefinitionError",
    "DeterminismWarning",
    "Divergence",
    "Event",
    "EventRuleNotFound",
    "EventStream",
    "EventTimeout",
    "Every",
    "InvalidCall",
    "InvalidRequest",
    "LimitReached",
    "Message",
    "MessageTimeout",
    "NonDeterminism",
    "NothingDone",
    "OtherWorkflow",
    "Outbox",
    "OutboxEvent",
    "OutsideActivity",
    "OutsideWorkflow",
    "QueryError",
    "QueryTimeout",
    "RemoteError",
    "RequestIdReused",
    "RequestRefused",
    "RetryPolicy",
    "RomancyError",
    "ScheduleChanged",
    "ScheduleExists",
    "ScheduleHandle",
    "ScheduleNotFound",
    "SendError",
    "ServiceBusy",
    "ServiceFailed",
    "ServiceUnavailable",
    "SinkInfo",
    "SinkNotFound",
    "StepError",
    "TerminalError",
    "UpdateAborted",
    "UpdateError",
    "UpdateRejected",
    "Worker",
    "WorkerStopped",
    "WorkflowAlreadyOpen",
    "WorkflowCancelled",
    "WorkflowClosed",
    "WorkflowContext",
    "WorkflowDefinition",
    "WorkflowError",
    "WorkflowFailed",
    "WorkflowHandle",
    "WorkflowIdUsed",
    "WorkflowInfo",
    "WorkflowNotFound",
    "WorkflowOpen",
    "WorkflowTaskError",
    "WorkflowTerminated",
    "WorkflowTimedOut",
    "activity",
    "activity_info",
    "compensation",
    "heartbeat",
    "is_cancelled",
    "send_event",
    "unguarded",
    "workflow",
]

_HOMES: Final = (
    "errors", "options", "events", "outbox", "channels", "activity", "attributes", "children", "context", "workflow",
    "refusals", "elsewhere", "handle", "schedules", "event_rules", "client", "worker",
)  # fmt: skip
"""The modules that have the public names, each after those that it needs."""


class _Package(ModuleType):
    """`romancy.activity` and `romancy.workflow` are the decorators, although they live in modules of the same names."""

    def __setattr__(self, name: str, value: object) -> None:
        # Importing a module sets it as an attribute of its package.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"romancy.{home}")
            if name in vars(module):
                value = globals()[name] = vars(module)[name]
                return value
    raise AttributeError(f"module 'romancy' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
