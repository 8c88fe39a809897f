# Exercise 8.1
def patient(question):
    """The answer to *question*, as soon as the server has a place."""
    while True:
        try:
            return text(answer(question, "tone", max_tokens=3))
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
            time.sleep(0.2)


crowd = list(islice(cycle(questions), 60))
with ThreadPoolExecutor(len(crowd)) as phones:
    answered = list(phones.map(patient, crowd))
print(f"{sum(one is not None for one in answered)} of {len(crowd)} phones got an answer")
lab.exercise("8.1", each_phone_got_an_answer=None not in answered)
