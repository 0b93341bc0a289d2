"""Patterns and words of the paper's tasks, as the published code writes them: `_` is the mask, `||` parts segments."""

NEWS = ["_ : <a> <b>", "_ {} <a> <b>", "<a> ( _ ) <b>", "<a> <b> ( _ )", "[ Category: _ ] <a> <b>", "_ - <a> <b>"]
YELP = ["It was _ . <a>", "<a> . All in all, it was _ .", "Just _ ! || <a>", "<a> || In summary, the restaurant is _ ."]
MNLI = ['" <a\'> " ? || _ , " <b> "', "<a'> ? || _ , <b>"]
STANCE = ['" <a> " || _ . " <b> "', "<a> || _ . <b>"]
RIGHT_WRONG = {"contradiction": ("Wrong",), "entailment": ("Right",), "neutral": ("Maybe",)}
YES_NO = {"contradiction": ("No",), "entailment": ("Yes",), "neutral": ("Maybe",)}
GERMAN = {"FAVOR": ("Ja",), "AGAINST": ("Nein",)}
ENGLISH = {"FAVOR": ("Yes",), "AGAINST": ("No",)}
FRENCH = {"FAVOR": ("Oui",), "AGAINST": ("Non",)}
AGNEWS_WORDS = {"World": ("World",), "Sports": ("Sports",), "Business": ("Business",), "Tech": ("Tech",)}
YELP_WORDS = {"1": ("terrible",), "2": ("bad",), "3": ("okay",), "4": ("good",), "5": ("great",)}
YAHOO = ["Society", "Science", "Health", "Education", "Computer", "Sports", "Business"]
YAHOO += ["Entertainment", "Relationship", "Politics"]
YAHOO_WORDS = {word: (word,) for word in YAHOO}
PVPS = {
    "agnews": [(pattern.format("News:"), AGNEWS_WORDS) for pattern in NEWS],
    "yahoo": [(pattern.format("Question:"), YAHOO_WORDS) for pattern in NEWS],
    "yelp-full": [(pattern, YELP_WORDS) for pattern in YELP],
    "yelp-polarity": [(pattern, {"negative": ("bad",), "positive": ("good",)}) for pattern in YELP],
    "mnli": [(pattern, words) for words in (RIGHT_WRONG, YES_NO) for pattern in MNLI],
    "mnli-mm": [(pattern, words) for words in (RIGHT_WRONG, YES_NO) for pattern in MNLI],
    "xstance": [(pattern, words) for words in (GERMAN, ENGLISH, FRENCH) for pattern in STANCE],
    "xstance-de": [(pattern, words) for words in (GERMAN, ENGLISH) for pattern in STANCE],
    "xstance-fr": [(pattern, words) for words in (ENGLISH, FRENCH) for pattern in STANCE],
}
