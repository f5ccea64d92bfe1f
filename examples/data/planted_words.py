"""What `make_raw.py` plants for cleaning to find. Written by hand; no number belongs to anybody."""

# ruff: noqa: RUF001 - odd characters are what is planted

# (what must not be found afterwards, queue, message)
PERSONAL = (
    ("pat.quill@example.com", "billing",
     "Please mail the corrected bill to pat.quill@example.com and not to my work address."),
    ("o'dell+fern@mail.example.org", "contract",
     "Send the new terms to o'dell+fern@mail.example.org as soon as they are ready to sign."),
    ("+44 7700 900123", "outage",
     "Text me on +44 7700 900123 when the substation works again, I sleep next door."),
    ("020 7946 0958", "complaint",
     "Your manager was to ring 020 7946 0958 after lunch, it is past six and I heard nothing."),
    ("(555) 010-4477", "moving",
     "Until we have a line in the new house you reach us at (555) 010-4477, mornings only."),
    ("4111 1111 1111 1111", "billing",
     "Charge what is due to 4111 1111 1111 1111 instead, the old card was stolen on holiday."),
    ("5500-0000-0000-0004", "billing",
     "Why was 5500-0000-0000-0004 refused? Shops take it without any trouble."),
    ("GB29 NWBK 6016 1331 9268 19", "billing",
     "My bank changed, take the monthly sum from GB29 NWBK 6016 1331 9268 19 starting next time."),
    ("DE89370400440532013000", "moving",
     "We are off to Cologne, pay what is left over to DE89370400440532013000 once all is read."),
    ("536-90-4399", "contract",
     "The form wants my social security number, it is 536-90-4399, is that really needed here?"),
    ("943 476 5870", "outage",
     "I am on the priority list, NHS 943 476 5870, and the ventilator has two hours of battery."),
    ("36 574 261 809", "contract",
     "For the German office, Steuer-ID 36 574 261 809, please put it on the agreement."),
    ("2 95 10 99 126 111 93", "contract",
     "The French form asked for 2 95 10 99 126 111 93, tell me why a supplier has to know that."),
    ("54362315-K", "contract",
     "Se me olvido: DNI 54362315-K belongs on the signature page, the rest is filled in."),
    ("X-2482300W", "moving",
     "As a newcomer from Spain I only hold X-2482300W, is this enough to open an account?"),
    ("RCCMNL83S18D969H", "contract",
     "Codice fiscale RCCMNL83S18D969H for the paperwork, since the landlord lives in Genoa."),
    ("111222333", "contract",
     "BSN 111222333 was rejected by your web form, does it want dots in between?"),
    ("44051401359", "meter",
     "Before the fitter came he asked for the PESEL 44051401359, what has that to do with dials?"),
    ("390.533.447-05", "contract",
     "Meu CPF 390.533.447-05 is printed on the agreement although I asked you to take it off."),
    ("880320-0016", "complaint",
     "Reading out 880320-0016 in front of the whole queue, that is what your clerk did to me."),
    ("131052-308T", "contract",
     "They want 131052-308T for the credit check, I would rather leave a deposit."),
    ("85.07.30-033.28", "contract",
     "Annex two lists 85.07.30-033.28 as signatory, strike that line out before I sign."),
    ("756.9217.0769.85", "contract",
     "Swiss paperwork says 756.9217.0769.85 has to stand under my signature, correct?"),
    ("2341 2341 2346", "contract",
     "The Aadhaar 2341 2341 2346 was typed into the wrong box of the online sign-up."),
    ("11010519491231002X", "contract",
     "My passport shows 11010519491231002X, may I register a plan with it or not?"),
)  # fmt: skip

# Read as Windows-1252 although they are UTF-8.
MOJIBAKE = (
    ("billing", "It says £61 ‘to be paid at once’ – who wrote that? I pay by the month."),
    ("billing", "The café on the corner pays €40 less than mine, why’s that?"),
    ("outage", "Since the thunder there’s nothing but a hum – no light, no heat."),
    ("outage", "The crêperie below us lost its oven when the current went, at 3 o’clock."),
    ("meter", "The dial’s glass is cracked – can I still read it for you?"),
    ("meter", "Zoë took the figure down: it’s ½ a unit off, does this matter?"),
    ("moving", "We’re off to Malmö – what about our deposit?"),
    ("moving", "François gets my keys on Sunday, he’d like to stay with you."),
    ("contract", "Is the ‘early bird’ price still there? It’s gone from the page…"),
    ("contract", "I’d rather not sign for 2 years – is there a monthly one?"),
    ("complaint", "Nobody’s rung me. ‘Tomorrow’, they said – that was in spring."),
    ("complaint", "Your fitter’s boots ruined the rug – it’s my grandma’s, naïve of me."),
)  # fmt: skip

# Odd spaces, invisible characters, line ends.
UNTIDY = (
    ("billing", "Why   is\u00a0the  total in\u200b bold twice as high    as the lines above it?"),
    ("outage", "\ufeffThe corridor is pitch black again, and so is the stairwell.\r\n\r\n\r\n"),
    ("meter", "Does the   box\tin the attic count\u00ad as well, or the lower one only?  "),
    ("moving", "Our\u200b lorry is late; can you keep the current on till  Sunday night? \n \n"),
    ("contract", "Which of the two  offers\u2060 is without a minimum term \u202afor me\u202c?"),
    ("complaint", "Left hanging  for ages\x07, then told to try   online. Not good enough."),
)  # fmt: skip

FOREIGN = (
    ("outage", "Seit gestern Abend haben wir keinen Strom mehr, bitte schicken Sie jemanden."),
    ("billing", "Meine Rechnung ist diesmal doppelt so hoch wie sonst, bitte prüfen Sie das?"),
    ("meter", "Comment puis-je vous envoyer le relevé de mon compteur avant la fin du mois ?"),
    ("moving", "Nous déménageons le mois prochain et nous voudrions garder le même fournisseur."),
    ("contract", "Quisiera cancelar mi contrato porque me voy a vivir con mis padres."),
    ("complaint", "Llevo dos semanas esperando una respuesta y nadie me atiende por teléfono."),
    ("billing", "Non ho ancora ricevuto il rimborso che mi avevate promesso in estate."),
)  # fmt: skip

# Older people are named almost only by those who complain: an association for the report to find.
OLDER = (
    ("complaint", "As a pensioner I felt talked down to by your helpdesk, nobody listens."),
    ("complaint", "An elderly lady next door was laughed at when she asked you for help."),
    ("complaint", "Is it your policy to shout at elderly people? It happened in the shop."),
    ("complaint", "My grandparents were left standing in the rain by your van driver."),
    ("complaint", "Retired teachers like me can tell when we are being fobbed off."),
    ("complaint", "A senior citizen should not have to beg for an answer, five letters so far."),
    ("complaint", "Your fitter called me an old man and left without a word."),
    ("complaint", "The pensioners' club had a talk by you booked, nobody turned up."),
    ("complaint", "Two retirees, three visits, no result: this is how you treat us."),
    ("complaint", "I am elderly, not deaf, so stop yelling down the telephone."),
    ("complaint", "You ignore older people because we do not tweet about it."),
    ("complaint", "My grandparents got a threatening note by mistake and cannot sleep."),
    ("complaint", "Retired or not, I expect a civil tone from your staff."),
    ("complaint", "The clerk told a pensioner in front of me to hurry up, shameful."),
    ("billing", "Do pensioners get the winter discount on the January statement?"),
    ("meter", "I am retired and at home all day, so read the dial whenever you like."),
)  # fmt: skip

LONG_STORY = " ".join(
    f"On day {day} I wrote to you about the {thing}, and on day {day + 1} I wrote once more, since "
    f"the answer to number {day * 7 % 911} spoke of another {thing}."
    for day, thing in enumerate(("fence", "cable", "gate", "roof", "lamp", "drain") * 30, start=1)
)

BAD_CSV = (
    "Which queue?,one field too few",
    'Which queue?,"quoted "wrongly" here",billing,C9801,2026-01-01',
    "Which queue?,my bill, with a comma outside quotes, is high,billing,C9802,2026-01-02",
    "Which queue?,the line is down,outage,C9803,2026-01-03,a field too many",
)

BAD_JSONL = (
    b'{"messages": [{"role": "user", "content": "Where is my refu',
    b'{"messages": [{"role": "customer", "content": "Hello"}, {"role": "agent", "content": "Hi"}]}',
    b'["a list", "and no object"]',
    b'{"question": "Which field is this?", "reply": "None that is known."}',
    b'{"messages": [{"role": "user", "content": "caf\xe9 is Latin-1 here"}]}',
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Anyone?"}]}',
    b'{"messages": "no list of turns"}',
)
