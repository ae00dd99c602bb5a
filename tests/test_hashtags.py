"""Hashtags of the world: with combining marks, and between two signs."""

import pytest

from model.readers.hashtags import label_by_hashtag


@pytest.mark.parametrize(
    ("tweet", "text", "phrase"),
    [
        ("हम #हिन्दी सीखते हैं", "हम हिन्दी सीखते हैं", "हिन्दी"),
        ("أنا في #سوق_الكتب اليوم", "أنا في سوق الكتب اليوم", "سوق الكتب"),
        ("من #می\u200cخواهم بروم", "من می\u200cخواهم بروم", "می\u200cخواهم"),
        ("so #cafe\u0301Malvern it is", "so café Malvern it is", "café Malvern"),
        ("今日は #サッカー を見た", "今日は サッカー を見た", "サッカー"),
        ("昨天的 #电影节# 太好看了", "昨天的 电影节 太好看了", "电影节"),
        ("昨天的#电影节#太好看了", "昨天的电影节太好看了", "电影节"),
        ("看＃手机 发布会＃直播", "看手机 发布会直播", "手机 发布会"),
        ("看NBA#CBA#总决赛", "看NBA CBA总决赛", "CBA"),
        ("we #one#two words", "we one#two words", "one"),
    ],
)
def test_a_hashtag_is_whole(tweet: str, text: str, phrase: str):
    made = label_by_hashtag(tweet)
    assert not isinstance(made, str)
    assert (made[0], made[0][slice(*made[1])]) == (text, phrase)


@pytest.mark.parametrize(
    ("tweet", "reason"),
    [
        ("看 #电影节# 和 #音乐节# 吧", "more than one hashtag"),
        ("今日は #東京 と #大阪 へ", "more than one hashtag"),
        ("#电影节# 太好看了", "the hashtag is not inside the text"),
        ("我是 #1# 号", "the hashtag is a number"),
    ],
)
def test_other_tweets_have_no_keyphrase(tweet: str, reason: str):
    assert label_by_hashtag(tweet) == reason
