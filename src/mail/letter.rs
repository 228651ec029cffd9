//! What a mail says: once as plain text, once as simple HTML, from the same parts.
//!
//! Invariants: whatever is put in is text, and is escaped where it becomes HTML; a subject is one
//! line; a name is in a letter only where its reader is known to have chosen it. Nothing here knows what a
//! mail is about, except the welcome and what comes before it.

use crate::config::Language;

/// A letter in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    language: Language,
    subject: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Paragraph(String),
    Rows(Vec<Vec<String>>),
}

impl Letter {
    /// An empty one.
    pub fn new(language: Language, subject: impl Into<String>) -> Self {
        let subject: String = subject.into();
        Self {
            language,
            subject: subject
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
            parts: Vec::new(),
        }
    }

    /// Adds the greeting; without a name to those whose name is not known to be theirs.
    #[must_use]
    pub fn greet(self, name: Option<&str>) -> Self {
        let words = match (self.language, name) {
            (Language::En, Some(name)) => format!("Hello {name},"),
            (Language::En, None) => "Hello,".to_owned(),
            (Language::Zh, Some(name)) => format!("{name}，您好："),
            (Language::Zh, None) => "您好：".to_owned(),
        };
        self.say(words)
    }

    /// Adds a paragraph.
    #[must_use]
    pub fn say(mut self, text: impl Into<String>) -> Self {
        self.parts.push(Part::Paragraph(text.into()));
        self
    }

    /// Adds a small table.
    #[must_use]
    pub fn rows(mut self, rows: Vec<Vec<String>>) -> Self {
        self.parts.push(Part::Rows(rows));
        self
    }

    /// Its subject.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// As plain text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Paragraph(words) => text.push_str(words),
                Part::Rows(rows) => {
                    let lines: Vec<String> = rows.iter().map(|row| row.join("  ")).collect();
                    text.push_str(&lines.join("\n"));
                }
            }
            text.push_str("\n\n");
        }
        text
    }

    /// As HTML, without pictures, scripts or anything from elsewhere.
    pub fn html(&self) -> String {
        let language = match self.language {
            Language::En => "en",
            Language::Zh => "zh-CN",
        };
        let mut html = format!(
            "<!doctype html>\n<html lang=\"{language}\">\n<head><meta charset=\"utf-8\"><title>{}</title></head>\n\
             <body style=\"font-family: sans-serif; line-height: 1.5; max-width: 40em\">\n",
            escaped(&self.subject)
        );
        for part in &self.parts {
            match part {
                Part::Paragraph(words) => {
                    html.push_str(&format!("<p>{}</p>\n", escaped(words)));
                }
                Part::Rows(rows) => {
                    html.push_str("<table cellpadding=\"4\">\n");
                    for row in rows {
                        html.push_str("<tr>");
                        for cell in row {
                            html.push_str(&format!("<td>{}</td>", escaped(cell)));
                        }
                        html.push_str("</tr>\n");
                    }
                    html.push_str("</table>\n");
                }
            }
        }
        html.push_str("</body>\n</html>\n");
        html
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push_str("<br>"),
            c => out.push(c),
        }
    }
    out
}

/// For somebody who has just registered.
pub(super) fn welcome(language: Language, shop: &str, name: Option<&str>) -> Letter {
    match language {
        Language::En => Letter::new(language, format!("Welcome to {shop}"))
            .greet(name)
            .say(format!(
                "Welcome to {shop}. Your account is ready: log in with this address and the password that you chose."
            ))
            .say("If it was not you who registered, you can ignore this mail."),
        Language::Zh => Letter::new(language, format!("欢迎来到{shop}"))
            .greet(name)
            .say(format!(
                "欢迎来到{shop}。您的账户已经可以使用，请用此邮箱地址和您设置的密码登录。"
            ))
            .say("如果不是您本人注册，请忽略此邮件。"),
    }
}

/// For somebody who is to prove an address: `way` is a link, or what is to be entered in its place.
pub(super) fn proof(language: Language, shop: &str, way: &str, hours: u64) -> Letter {
    match language {
        Language::En => Letter::new(language, format!("{shop}: confirm your address"))
            .greet(None)
            .say(format!(
                "This address was registered at {shop}. To complete the registration within {hours} hours, use this and the password that you chose:"
            ))
            .say(way)
            .say("If it was not you who registered, you can ignore this mail: no account comes of it."),
        Language::Zh => Letter::new(language, format!("{shop}：请确认您的邮箱"))
            .greet(None)
            .say(format!(
                "有人用此邮箱在{shop}注册。请在 {hours} 小时内用以下内容和您设置的密码完成注册："
            ))
            .say(way)
            .say("如果不是您本人注册，请忽略此邮件，不会产生任何账户。"),
    }
}

/// For somebody whose address was registered again.
pub(super) fn has_account(language: Language, shop: &str) -> Letter {
    match language {
        Language::En => Letter::new(language, format!("{shop}: you have an account"))
            .greet(None)
            .say(format!(
                "Somebody wanted to register this address at {shop}. It has an account already: log in with this address and the password that you chose then."
            ))
            .say("If it was not you, you can ignore this mail: nothing was changed."),
        Language::Zh => Letter::new(language, format!("{shop}：您已有账户"))
            .greet(None)
            .say(format!(
                "有人想用此邮箱在{shop}注册，但此邮箱已有账户，请用此邮箱地址和原来的密码登录。"
            ))
            .say("如果不是您本人操作，请忽略此邮件，您的账户没有任何变化。"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_stays_text() {
        let name = Some("<script>alert('x')</script>\nEve");
        let letter = welcome(Language::En, "Tea & Co", name);
        let html = letter.html();
        assert!(!html.contains("<script>"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;<br>Eve"));
        assert!(html.contains("Tea &amp; Co") && letter.text().contains("Tea & Co"));
        let injected = Letter::new(Language::Zh, "杯子\r\nBcc: eve@example.com");
        assert_eq!(injected.subject(), "杯子  Bcc: eve@example.com");
        let table = injected.rows(vec![vec!["杯子".to_owned(), "2".to_owned()]]);
        assert!(table.html().contains("<td>杯子</td><td>2</td>"));
        assert!(table.text().contains("杯子  2"));
    }
}
