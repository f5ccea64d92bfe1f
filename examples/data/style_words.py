"""Fernline's house style: how its answers sound, whatever the question.

The style: say back what the customer wants, one or two plain steps, a promise with a time, and the
sign-off. No apology, no exclamation mark. Every sentence was written for this project by hand.
"""

SIGN_OFF = "Fernline, day and night."

# Per subject: ways to ask, what is said back, steps, and promises. Slots are those of the tickets.
SUBJECTS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]]] = {
    "password": (
        ("I forgot the password for the app", "the login page does not know me any more",
         "how do I get into my online account after {count} wrong tries?",
         "locked out of the {town} account since {weekday}, what now?"),
        "You want back into your account.",
        ("Tap 'New password' and open the link that we send.",
         "Ask for a new password on the login page; the link works for an hour."),
        ("You are in within five minutes.", "It takes two minutes."),
    ),
    "router": (
        ("the router in the {room} blinks {colour}", "how do I restart the router properly?",
         "wifi is weak in the {room} since we moved the box",
         "does the box have to stand next to the {machine} in the {room}?"),
        "Your router needs a hand.",
        ("Pull the plug, count to thirty and put it back.",
         "Stand it in the open, away from the microwave, and restart it."),
        ("The light is steady again after three minutes.", "If not, we call you the same day."),
    ),
    "visit": (
        ("can the engineer come on {weekday} instead?", "I have to move my appointment in {month}",
         "who do I tell that nobody is home on {weekday}?",
         "the visit on the {day} does not suit my {relative}"),
        "You want another day for the visit.",
        ("Choose a new slot under 'Visits' in the app.",
         "Reply with two days that suit you and we take the first that is free."),
        ("We confirm it within the hour.", "You have a text with the new time tonight."),
    ),
    "refund": (
        ("I paid twice in {month}, {amount} pounds each time",
         "how do I get my credit of £{small} back?",
         "when do I see the refund for the {tariff} plan?",
         "you owe my {relative} £{small} since {month}"),
        "You want your money back.",
        ("We send it to the account that you pay from.",
         "Check your bank details under 'Payments', then press 'Pay out'."),
        ("It is there in three working days.", "Allow five working days for it."),
    ),
    "smell": (
        ("there is a smell of gas in the {room}", "it smells like rotten eggs near the {place2}",
         "I think the pipe behind the {place2} is leaking gas",
         "my {relative} smells gas in the {room}, is that dangerous?"),
        "You smell gas, so this comes first.",
        ("Open the windows, touch no switch, go outside and ring 0000 from there.",
         "Leave the house, take everybody with you and ring 0000 from the street."),
        ("An engineer is with you within the hour.",
         "We stay on the line until somebody is there."),
    ),
    "tariff": (
        ("is {tariff} the right plan for {count} people?", "which plan is best for a {machine}?",
         "would I save money with {tariff} in {month}?",
         "we are hardly at home, does {tariff} make sense?"),
        "You want the plan that fits you.",
        ("Open 'Compare' in the app; it counts with your own use.",
         "Send us your last two readings and we work it out."),
        ("You know within a day.", "The answer takes a minute."),
    ),
    "reading": (
        ("how do I send in my reading of {reading}?", "where do I type the number {reading}?",
         "can my {relative} read the meter for me in {month}?",
         "which digits count, is it {reading} or only the first four?"),
        "You want to give us a reading.",
        ("Type the black digits under 'Meter' and leave the red ones out.",
         "Send a photo of the dial in the chat and we read it."),
        ("Your next bill has it.", "It counts from the same day."),
    ),
    "charger": (
        ("can you fit a car charger at {number} {street}?", "I bought an electric car in {month}",
         "what do I need for a charger in the {place2}?",
         "does the {tariff} plan have a cheap rate for the car?"),
        "You want to charge a car at home.",
        ("Fill in the short form with a photo of your fuse box.",
         "Tell us where the car stands and how far the fuse box is."),
        ("You have a fixed price in two days.", "We fit it within three weeks."),
    ),
    "letter": (
        ("can I have my letters in large print?", "please send bills by e-mail and not by post",
         "I want paper bills again since {month}",
         "my {relative} cannot read the small letters of the bill"),
        "You want your letters another way.",
        ("Choose it under 'Letters' in the app.",
         "We have changed it in your account today."),
        ("The next letter comes the new way.", "It holds from the next bill on."),
    ),
    "holiday": (
        ("we are away from {month} to {month2}, should we switch things off?",
         "does the broadband cost anything while I am away for {count} months?",
         "leaving the {town} house empty until the {day}, any advice?",
         "can I pause {tariff} while my {relative} is in hospital?"),
        "You want to spend nothing while nobody is home.",
        ("Press 'Pause' in the app and turn the boiler to frost guard.",
         "Leave only the fridge on and pause the broadband in the app."),
        ("The pause starts at midnight.", "You pay again from the day you are back."),
    ),
    "solar": (
        ("do you pay for power from my roof?", "how do I sell you the solar power from {street}?",
         "we get panels on the {place2} in {month}, what do we earn?",
         "is {tariff} good with {count} solar panels?"),
        "You want to sell us your sun.",
        ("Send the installer's certificate and a reading of the export meter.",
         "Register the panels under 'My home' and upload the certificate."),
        ("You earn from the next month on.", "We check it within ten days."),
    ),
    "support": (
        ("I cannot pay the bill this {period}", "money is tight since {month}, what can you do?",
         "lost my job in {month} and the bill of £{amount} scares me",
         "my {relative} is ill and we are behind by £{amount}"),
        "You want to pay in steps that you can manage.",
        ("Tell us what you can spare each month; we stop every reminder.",
         "Press 'I need time' in the app and choose an amount."),
        ("Nobody switches you off meanwhile.", "We answer the same day."),
    ),
}  # fmt: skip

FOLLOW_UPS = (
    ("and what if that does not work?", "Then write here again.",
     ("We look at it together by phone.", "Somebody rings you at a time that you choose.")),
    ("can somebody do it for me?", "You would rather leave it to us.",
     ("Say yes here and we do it now.", "Answer with your date of birth and we start.")),
    ("is there a cost to that?", "You want to know the price first.",
     ("It is free on every plan.", "There is no charge for it.")),
    ("how will I know that it worked?", "You want to be sure.",
     ("The app shows a green tick.", "You get a text that says so.")),
)  # fmt: skip
