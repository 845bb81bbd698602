"""Make one HTML page of an evaluation: verdicts, tables, plots and every picture.

`load` reads runs and ledgers, `judge` applies the statistics, `readings`, `pictures` and `figures`
prepare what is shown, `render` fills the template. The page needs no network and no JavaScript.
"""

LIMIT_MB = 16.0  # of a page: what a browser opens without waiting, and a mail server may still take
