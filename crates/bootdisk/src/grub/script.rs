//! The grammar of GRUB's scripts.

/// How deep statements can be in each other.
const MAX_DEPTH: usize = 32;

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command with its arguments, and a block for those that have one (`menuentry`, `submenu`).
    Command(Vec<Word>, Option<Vec<Statement>>),
    /// The branches of an `if`, each a condition and what follows; `else` has an empty condition.
    If(Vec<(Vec<Statement>, Vec<Statement>)>),
    /// A function and its body.
    Function(String, Vec<Statement>),
}

/// A word, made of parts that follow each other without a blank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word(pub(super) Vec<Part>);

/// A part of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Text as it is.
    Text(String),
    /// The value of a variable; it is split at blanks unless it is quoted.
    Variable {
        /// Its name.
        name: String,
        /// Whether it is in double quotes.
        quoted: bool,
    },
}

impl Word {
    /// The text of a word without variables.
    fn literal(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    /// The end of a command: a line break or a semicolon.
    End,
}

/// Makes statements of a script.
///
/// # Errors
/// What is wrong, with the line.
pub(super) fn parse(text: &str) -> Result<Vec<Statement>, String> {
    let tokens = Lexer { rest: text.chars().peekable(), line: 1 }.tokens()?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    parser.statements(&[])
}

struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    /// The tokens with their lines.
    fn tokens(mut self) -> Result<Vec<(Token, usize)>, String> {
        let mut tokens = Vec::new();
        while let Some(&c) = self.rest.peek() {
            let line = self.line;
            match c {
                '\n' | ';' => {
                    self.next();
                    tokens.push((Token::End, line));
                }
                c if c.is_whitespace() => {
                    self.next();
                }
                '#' => while self.rest.next_if(|c| *c != '\n').is_some() {},
                _ => tokens.push((Token::Word(self.word()?), line)),
            }
        }
        Ok(tokens)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    fn word(&mut self) -> Result<Word, String> {
        let mut word = Word::default();
        while let Some(&c) = self.rest.peek() {
            match c {
                c if c.is_whitespace() || c == ';' => break,
                '\'' => {
                    self.next();
                    word.push(&self.until('\'')?);
                }
                '"' => {
                    self.next();
                    self.double_quoted(&mut word)?;
                }
                '\\' => {
                    self.next();
                    // A backslash before the end of a line continues it.
                    if let Some(c) = self.next().filter(|c| *c != '\n') {
                        word.push(c.encode_utf8(&mut [0; 4]));
                    }
                }
                '$' => {
                    self.next();
                    self.variable(&mut word, false)?;
                }
                c => {
                    self.next();
                    word.push(c.encode_utf8(&mut [0; 4]));
                }
            }
        }
        Ok(word)
    }

    fn double_quoted(&mut self, word: &mut Word) -> Result<(), String> {
        // An empty text is a word, too.
        word.push("");
        let line = self.line;
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(word, true)?,
                Some('\\') => match self.next() {
                    Some(c @ ('"' | '\\' | '$')) => word.push(c.encode_utf8(&mut [0; 4])),
                    Some(c) => word.push(&format!("\\{c}")),
                    None => {}
                },
                Some(c) => word.push(c.encode_utf8(&mut [0; 4])),
                None => return Err(format!("line {line}: a quote that does not end")),
            }
        }
    }

    fn until(&mut self, end: char) -> Result<String, String> {
        let (line, mut text) = (self.line, String::new());
        loop {
            match self.next() {
                Some(c) if c == end => return Ok(text),
                Some(c) => text.push(c),
                None => return Err(format!("line {line}: a {end} that does not come")),
            }
        }
    }

    fn variable(&mut self, word: &mut Word, quoted: bool) -> Result<(), String> {
        let name = match self.rest.next_if_eq(&'{') {
            Some(_) => self.until('}')?,
            None => {
                let mut name = String::new();
                let is_name = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '?' | '@');
                while let Some(c) = self.rest.next_if(is_name) {
                    name.push(c);
                }
                name
            }
        };
        match name.is_empty() {
            true => word.push("$"),
            false => word.0.push(Part::Variable { name, quoted }),
        }
        Ok(())
    }
}

impl Word {
    fn push(&mut self, more: &str) {
        match self.0.last_mut() {
            Some(Part::Text(text)) => text.push_str(more),
            _ => self.0.push(Part::Text(more.to_owned())),
        }
    }
}

struct Parser<'a> {
    tokens: &'a [(Token, usize)],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn error(&self, what: &str) -> String {
        let line = self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(_, line)| *line);
        format!("line {line}: {what}")
    }

    /// Whether the next token is the plain word `text`.
    fn is(&self, text: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(word)) if word.literal() == Some(text))
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        while self.peek() == Some(&Token::End) {
            self.at += 1;
        }
        if !self.is(text) {
            return Err(self.error(&format!("no {text:?}")));
        }
        self.at += 1;
        Ok(())
    }

    /// Statements up to one of the words `ends`, which is left, or to the end of the script.
    fn statements(&mut self, ends: &[&str]) -> Result<Vec<Statement>, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("too many statements in each other"));
        }
        let mut statements = Vec::new();
        loop {
            match self.peek() {
                Some(Token::End) => self.at += 1,
                Some(Token::Word(_)) if !ends.iter().any(|end| self.is(end)) => {
                    statements.extend(self.statement()?);
                }
                _ => break,
            }
        }
        self.depth -= 1;
        Ok(statements)
    }

    fn statement(&mut self) -> Result<Option<Statement>, String> {
        if ["{", "}", "then", "fi", "do", "done"].iter().any(|word| self.is(word)) {
            return Err(self.error("a word that belongs to nothing"));
        }
        if self.is("if") {
            return self.condition().map(Some);
        }
        if self.is("function") {
            self.at += 1;
            let name = match self.peek() {
                Some(Token::Word(word)) => word.literal().unwrap_or_default().to_owned(),
                _ => return Err(self.error("a function without a name")),
            };
            self.at += 1;
            return Ok(Some(Statement::Function(name, self.block()?)));
        }
        if ["for", "while", "until"].iter().any(|word| self.is(word)) {
            self.at += 1;
            self.command();
            self.expect("do")?;
            self.statements(&["done"])?;
            self.expect("done")?;
            return Ok(None);
        }
        let words = self.command();
        let block = if self.is("{") { Some(self.block()?) } else { None };
        Ok(Some(Statement::Command(words, block)))
    }

    /// The words up to the end of a command, or to its block.
    fn command(&mut self) -> Vec<Word> {
        let mut words: Vec<Word> = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            if !words.is_empty() && matches!(word.literal(), Some("{" | "}")) {
                break;
            }
            words.push(word.clone());
            self.at += 1;
        }
        words
    }

    fn block(&mut self) -> Result<Vec<Statement>, String> {
        self.expect("{")?;
        let statements = self.statements(&["}"])?;
        self.expect("}")?;
        Ok(statements)
    }

    fn condition(&mut self) -> Result<Statement, String> {
        let mut branches = Vec::new();
        // At `if` or `elif`.
        loop {
            self.at += 1;
            let condition = self.statements(&["then"])?;
            self.expect("then")?;
            branches.push((condition, self.statements(&["elif", "else", "fi"])?));
            if self.is("elif") {
                continue;
            }
            if self.is("else") {
                self.at += 1;
                branches.push((Vec::new(), self.statements(&["fi"])?));
            }
            self.expect("fi")?;
            return Ok(Statement::If(branches));
        }
    }
}
