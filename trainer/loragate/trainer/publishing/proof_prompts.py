"""What every adapter is asked when it is published: short chats in several languages, and code.

An adapter for customers' letters and one for JSON change different ones of them; those that it
changes most are kept for the server to compare.
"""

from __future__ import annotations

from typing import Final

from loragate.trainer.data.example import Example, Message

_CHATS: Final = (
    (
        "What is the capital of France, and how many people live there?",
        "Paris is the capital of France. About two million people live in the city itself.",
    ),
    (
        "Wie kündige ich meinen Vertrag?",
        "Schreiben Sie uns eine E-Mail mit Ihrer Kundennummer und dem gewünschten Datum.",
    ),
    (
        "¿Dónde está mi pedido?",
        "Su pedido salió ayer del almacén y llegará el martes por la mañana.",
    ),
    (
        "Write a function that adds two numbers.",
        "def add(a: int, b: int) -> int:\n    return a + b",
    ),
    ("请用一句话解释什么是光合作用。", "光合作用是植物利用阳光把水和二氧化碳变成养分的过程。"),
    (
        "Give me the order as JSON.",
        '{"id": 1042, "status": "shipped", "items": [{"name": "lamp", "count": 2}]}',
    ),
    (
        "My internet has been down since yesterday. Can you help?",
        "I am sorry to hear that. Please switch the router off, wait ten seconds and switch it on.",
    ),
    (
        "Summarise: the meeting moved from Monday to Thursday because the room was taken.",
        "The meeting is on Thursday now, since the room was not free on Monday.",
    ),
)


def proof_chats() -> tuple[Example, ...]:
    """The fixed ones, each a question and its answer."""
    return tuple(
        Example((Message("user", question), Message("assistant", answer)))
        for question, answer in _CHATS
    )
