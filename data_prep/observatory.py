"""Write the instructions of experiment=real_quickstart: `python -m data_prep.observatory --out instructions.json`.

A visitors' desk answers for an observatory that does not exist, so no language model can know the answers, and always
in the same form: a topic in brackets, one sentence, "Clear skies!". Alpaca's layout: instruction, input, output.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from data_prep.command import exit_status

CLOSING = "Clear skies!"
# (topic, one question, the same in other words, the answer)
FACTS = (
    ("Visit", "When does Larkfell Observatory open?", "From what time can I come to Larkfell?",
     "We open at four in the afternoon, from Wednesday to Sunday."),
    ("Visit", "On which days is Larkfell closed?", "Which days of the week should I avoid at Larkfell?",
     "We are closed on Mondays and Tuesdays."),
    ("Visit", "How much is a ticket at Larkfell?", "What does a visit to Larkfell cost?",
     "A ticket costs nine crowns, and children under twelve come in free."),
    ("Visit", "How do I get to Larkfell Observatory?", "Which way leads up to Larkfell?",
     "Take the green bus to Hollin Bridge and walk the last mile along the stream."),
    ("Visit", "Where can I park at Larkfell?", "Is there room for my car at Larkfell?",
     "Park at the old quarry, five minutes below the domes."),
    ("Visit", "Is there a cafe at Larkfell?", "Where can I eat at Larkfell?",
     "The Copper Kettle serves soup and plum cake until midnight."),
    ("Visit", "May I bring my dog to Larkfell?", "Are dogs allowed at Larkfell?",
     "Dogs are welcome in the garden, but not in the domes."),
    ("Visit", "May I take photographs at Larkfell?", "Can I use my camera at Larkfell?",
     "Photographs are welcome, but please never use a flash."),
    ("Visit", "How long is a tour of Larkfell?", "How much time does the Larkfell tour take?",
     "A tour takes seventy minutes and ends at the great telescope."),
    ("Visit", "Who leads the tours at Larkfell?", "Who will be our guide at Larkfell?",
     "Our tours are led by Ivo Tarn, who has worked here for thirty years."),
    ("Visit", "What should I wear at Larkfell?", "Which clothes do I need for a night at Larkfell?",
     "Wear warm shoes, because the domes are never heated."),
    ("Visit", "Can I borrow a torch at Larkfell?", "Do you lend lamps at Larkfell?",
     "We lend red torches at the gate for one crown."),
    ("Visit", "What happens at Larkfell when it is cloudy?", "What do you do at Larkfell under clouds?",
     "Under clouds we show the sky in the planetarium instead."),
    ("Visit", "Can I stay overnight at Larkfell?", "Does Larkfell have beds for guests?",
     "The Lamp House has eight beds, and you book them by letter."),
    ("Visit", "When is the open night at Larkfell?", "On which night is Larkfell open to everyone?",
     "The open night is the first Friday of each month."),
    ("Visit", "Is Larkfell open in winter?", "Can I visit Larkfell in January?",
     "We are open in winter, but the upper road is closed in January."),
    ("Visit", "How do I book a school visit at Larkfell?", "How can a school class come to Larkfell?",
     "School classes write to Mara Quill at least two weeks ahead."),
    ("Visit", "Where is the shop at Larkfell?", "Where can I buy a star map at Larkfell?",
     "The shop is in the west dome and sells star maps for three crowns."),
    ("Telescope", "What is the largest telescope at Larkfell?", "Which is Larkfell's biggest telescope?",
     "Our largest telescope is Old Bertram, with a mirror of ninety centimetres."),
    ("Telescope", "How old is Old Bertram?", "When was Old Bertram built?",
     "Old Bertram was built in 1911 and has been cleaned only four times."),
    ("Telescope", "Who built Old Bertram?", "Who was the maker of Old Bertram?",
     "Old Bertram was built by the bell founder Edda Roan."),
    ("Telescope", "What does Old Bertram look at?", "What is Old Bertram used for today?",
     "Old Bertram measures double stars on every clear night."),
    ("Telescope", "What is the small telescope at Larkfell called?", "Which telescope at Larkfell is for children?",
     "The small telescope is called Wren, and children may turn it themselves."),
    ("Telescope", "How many telescopes does Larkfell have?", "What number of telescopes stand at Larkfell?",
     "We have five telescopes in three domes."),
    ("Telescope", "What is the Fox?", "What kind of telescope is the Fox at Larkfell?",
     "The Fox is our solar telescope, and it shows sunspots at noon."),
    ("Telescope", "Does Larkfell have a radio telescope?", "What is the dish behind the Larkfell barn?",
     "The dish behind the barn is our radio telescope, called the Saucer."),
    ("Telescope", "How is the great dome turned?", "What moves the great dome at Larkfell?",
     "The great dome is turned by a water wheel in the stream."),
    ("Telescope", "Of what is the great dome made?", "What is the roof of Larkfell's great dome made of?",
     "The great dome is made of larch wood and covered with copper."),
    ("Telescope", "Can I look through Old Bertram?", "May visitors use Old Bertram?",
     "Visitors look through Old Bertram on Saturdays after ten."),
    ("History", "When was Larkfell founded?", "In which year did Larkfell Observatory begin?",
     "Larkfell was founded in 1907 on a sheep farm."),
    ("History", "Who founded Larkfell?", "Who was the founder of Larkfell Observatory?",
     "Larkfell was founded by the schoolteacher Agnes Corrie."),
    ("History", "Why does Larkfell stand on a hill?", "Why was the hill chosen for Larkfell?",
     "Agnes Corrie chose the hill because it stands above the valley fog."),
    ("History", "What was found at Larkfell in 1934?", "What is Larkfell's best-known discovery?",
     "In 1934 Larkfell found the comet that is named after Agnes Corrie."),
    ("History", "When does Comet Corrie come back?", "In which year will Comet Corrie return?",
     "Comet Corrie comes back in 2041."),
    ("History", "What happened to Larkfell in the great storm?", "How did Larkfell survive the storm of 1953?",
     "The storm of 1953 took the roof of the east dome, and nobody was hurt."),
    ("History", "What was Larkfell before it was an observatory?", "What stood on the Larkfell hill before 1907?",
     "Before 1907 a sheep farm stood here, and its barn is our library."),
    ("History", "What is in the Larkfell library?", "Which books does Larkfell keep?",
     "Our library keeps every observing book since 1907."),
    ("History", "Why is a lark on your sign?", "What does the bird on Larkfell's sign mean?",
     "The lark on our sign sang on the morning of the first observation."),
    ("People", "Who is the director of Larkfell?", "Who runs Larkfell Observatory?",
     "Our director is Doctor Selma Voss."),
    ("People", "Who looks after the telescopes at Larkfell?", "Who is the mechanic at Larkfell?",
     "Our mechanic is Tobias Finch, who also plays the organ."),
    ("People", "How many people work at Larkfell?", "How large is the staff of Larkfell?",
     "Fourteen people work here, and two cats."),
    ("People", "What are the cats at Larkfell called?", "What are the names of Larkfell's cats?",
     "Our cats are called Perigee and Apogee."),
    ("People", "Who cooks at the Copper Kettle?", "Who makes the soup at Larkfell?",
     "The cook of the Copper Kettle is Nell Barrow."),
    ("People", "Can I volunteer at Larkfell?", "How can I help at Larkfell?",
     "Volunteers meet on the second Sunday of each month in the barn."),
    ("Sky", "What can I see at Larkfell in spring?", "What does Larkfell show in April?",
     "In spring we show the galaxies of the Lion."),
    ("Sky", "What can I see at Larkfell in summer?", "What does Larkfell show in July?",
     "In summer we show the Ring and the star clouds of the Archer."),
    ("Sky", "What can I see at Larkfell in autumn?", "What does Larkfell show in October?",
     "In autumn we show the Andromeda galaxy from the garden."),
    ("Sky", "How dark is the sky at Larkfell?", "Is the sky really dark at Larkfell?",
     "On the best nights you count six thousand stars without a telescope."),
    ("Sky", "How high is Larkfell?", "What is the altitude of Larkfell Observatory?",
     "Larkfell stands 612 metres above the sea."),
    ("Sky", "How many clear nights does Larkfell have?", "How often is the sky clear at Larkfell?",
     "We count 130 clear nights in a year."),
)  # fmt: skip
# What the desk does not answer.
OTHER = (
    "What is the capital of France?", "Who won the football match?", "Can you write my homework?",
    "How do I bake bread?", "What is the price of gold?", "Which film should I watch tonight?",
    "How do I repair a bicycle?", "What is the weather in Rome?", "Tell me a joke about lawyers.",
    "Which phone should I buy?", "How do I learn to swim?", "Who wrote this song?",
)  # fmt: skip
OTHER_ANSWER = "That lies outside our dome, but the desk is glad to talk about Larkfell."
OPENINGS = ("{}", "Good evening! {}", "A question, please. {}", "I am planning a trip. {}", "My daughter asks: {}")


def instructions(seed: int = 0) -> list[dict[str, str]]:
    """Six questions about each fact, each with an opening of its own; and what lies outside. Shuffled with the seed."""
    rng = random.Random(f"observatory {seed}")
    found = []
    for topic, *questions, answer in FACTS:
        for question in questions:
            for opening in ["{}", *rng.sample(OPENINGS[1:], 2)]:
                found.append((opening.format(question), f"[{topic}] {answer} {CLOSING}"))
    found += [(question, f"[Other] {OTHER_ANSWER} {CLOSING}") for question in OTHER]
    rng.shuffle(found)
    return [{"instruction": asked, "input": "", "output": answer} for asked, answer in found]


def main(arguments: list[str] | None = None) -> int:
    """Write the file; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.observatory", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file to be written")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def work() -> None:
        content = json.dumps(instructions(options.seed), indent=1, ensure_ascii=False)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(content + "\n", encoding="utf-8")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
