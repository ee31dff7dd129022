"""What a tokenizer makes of a language."""

import re

# Thai, Lao, Tibetan, Burmese, Khmer, kana and Han: written without spaces between words.
UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


def audit(tokenizer, sentences: list[str]) -> dict[str, float | None]:
    """Figures of a tokenizer on sentences of one language, without special tokens and cut by no length limit.

    `unknown_share`: unknown tokens among all; `tokens_per_word`: a word is what stands between spaces, so None for
    text in a script without them; `tokens_per_character`: spaces are not counted.
    """
    ids = tokenizer(sentences, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    text = " ".join(sentences)
    words, characters = len(text.split()), len("".join(text.split()))
    tokens = max(sum(map(len, ids)), 1)
    unspaced = len(UNSPACED.findall(text)) > characters / 2
    return {
        "unknown_share": sum(sentence.count(tokenizer.unk_token_id) for sentence in ids) / tokens,
        "tokens_per_word": None if unspaced else tokens / words,
        "tokens_per_character": tokens / characters,
    }
