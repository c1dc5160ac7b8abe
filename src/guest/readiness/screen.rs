//! A guest's screen as evidence: a picture that is not dark, came after others, and stays.
//!
//! The weakest evidence there is, for systems that have neither SSH nor a serial console nor guest
//! additions. In VGA's text mode QEMU tells what is written there, and a boot loader, a panic or a prompt is no
//! evidence. Else it cannot tell a login screen from an error message; a person can, with the picture.

use std::io::Cursor;
use std::time::{Duration, Instant};

use super::{Evidence, Observation, VmView, trouble};
use crate::error::{Error, Result};

/// How long a picture must stay, on bare metal.
pub(super) const STEADY: Duration = Duration::from_secs(20);

/// A picture that was there from the first look on must stay this much longer.
const UNCHANGED_FACTOR: u32 = 4;

/// No screen has more bytes than this once decoded (8K, 8 bits, RGBA).
const MOST_BYTES: usize = 7680 * 4320 * 4;

/// The pixels of VGA's text mode, in which firmwares, GRUB and a kernel without a driver for its screen write.
const TEXT_MODE: (u32, u32) = (720, 400);

/// The most bytes of a PNG that are read: more than what a screen of 4K takes that does not compress at all.
const MOST_PNG: usize = 48 << 20;

const COLUMNS: usize = 32;
const ROWS: usize = 24;

/// A picture, reduced to the mean brightness of its cells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    width: u32,
    height: u32,
    cells: Vec<u8>,
    /// Pixels that are not dark, per thousand.
    lit: usize,
}

impl Picture {
    /// Reads a PNG.
    fn decode(bytes: &[u8]) -> Result<Picture> {
        let bad = |error: png::DecodingError| {
            Error::failed("the screenshot is not a picture").with_source(error)
        };
        let limits = png::Limits { bytes: MOST_BYTES };
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().map_err(bad)?;
        let size = reader.output_buffer_size().filter(|size| *size <= MOST_BYTES);
        let mut pixels = vec![0; size.ok_or_else(|| Error::failed("the screenshot is too large"))?];
        let frame = reader.next_frame(&mut pixels).map_err(bad)?;
        let channels = frame.color_type.samples();
        Ok(Picture::reduce(&pixels, frame.width, frame.height, channels))
    }

    fn reduce(pixels: &[u8], width: u32, height: u32, channels: usize) -> Picture {
        let (columns, rows) = (width.max(1) as usize, height.max(1) as usize);
        let mut sums = vec![(0_usize, 0_usize); COLUMNS * ROWS];
        let mut lit = 0;
        for (at, pixel) in pixels.chunks_exact(channels).enumerate() {
            // The brightest channel; an alpha channel, the last of two or four, does not count.
            let colors = if channels.is_multiple_of(2) { channels - 1 } else { channels };
            let value = pixel[..colors].iter().copied().max().unwrap_or(0);
            lit += usize::from(value > 40);
            let (x, y) = (at % columns, at / columns);
            let cell = (y * ROWS / rows).min(ROWS - 1) * COLUMNS + x * COLUMNS / columns;
            sums[cell].0 += usize::from(value);
            sums[cell].1 += 1;
        }
        // A mean of bytes is a byte.
        let cells = sums.iter().map(|(sum, count)| (sum / count.max(&1)) as u8).collect();
        Picture { width, height, cells, lit: lit * 1000 / (columns * rows) }
    }

    /// Returns whether hardly anything is lit: a text cursor in the corner alone is dark.
    fn is_dark(&self) -> bool {
        self.lit == 0
    }

    /// Returns whether `other` shows something else; a blinking cursor and a clock do not count.
    fn differs(&self, other: &Picture) -> bool {
        let different = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 3;
        (self.width, self.height) != (other.width, other.height)
            || self.cells.iter().zip(&other.cells).filter(|pair| different(*pair)).count() > 2
    }
}

/// Watches the screen.
#[derive(Debug)]
pub(super) struct Screen {
    steady: Duration,
    last: Option<Picture>,
    since: Instant,
    changes: u32,
    /// What the text on the last picture told of trouble.
    trouble: Option<String>,
}

impl Screen {
    /// Returns a watch for which a picture is steady after `steady`.
    pub(super) fn new(steady: Duration) -> Self {
        Screen { steady, last: None, since: Instant::now(), changes: 0, trouble: None }
    }

    pub(super) async fn look(&mut self, view: VmView<'_>) -> Result<Observation> {
        let remote = view.spec.directory.join("readiness.png");
        view.hypervisor.screenshot(view.host, view.spec, &remote).await?;
        let picture = Picture::decode(&view.host.read(&remote, MOST_PNG).await?)?;
        let text = match (picture.width, picture.height) {
            // Its words only explain: a hypervisor too busy to give them is no reason to give up waiting.
            TEXT_MODE => view.hypervisor.screen_text(view.host, view.spec).await.unwrap_or(None),
            _ => None,
        };
        let trouble = text.as_deref().and_then(trouble::at_the_end_of);
        if trouble.is_some() && trouble == self.trouble {
            return Err(view.stuck(&trouble.unwrap_or_default()).await);
        }
        self.trouble = trouble;
        Ok(self.take(picture, text.as_deref()))
    }

    /// Takes the picture, with the text on it if that can be read.
    fn take(&mut self, picture: Picture, text: Option<&str>) -> Observation {
        let before = self.last.replace(picture.clone());
        match before {
            None => self.since = Instant::now(),
            Some(before) if before.differs(&picture) => {
                self.changes += 1;
                self.since = Instant::now();
            }
            Some(_) => {}
        }
        if text.is_some_and(trouble::is_loading) {
            let what = "waiting for its boot loader".to_owned();
            return Observation::Waiting { what, life: self.changes.to_string() };
        }
        let needed = self.steady * if self.changes == 0 { UNCHANGED_FACTOR } else { 1 };
        if !picture.is_dark() && self.since.elapsed() >= needed {
            let Picture { width, height, .. } = picture;
            return Observation::Up(Evidence::Screen { width, height, changes: self.changes });
        }
        let what = if picture.is_dark() {
            "waiting for its screen, which is dark".to_owned()
        } else {
            format!("waiting for its screen to stay as it is ({} changes so far)", self.changes)
        };
        // A lit picture that stays is what is waited for: its standing still is no stall.
        let life = if picture.is_dark() {
            self.changes.to_string()
        } else {
            format!("{} {:?}", self.changes, self.since.elapsed())
        };
        Observation::Waiting { what, life }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a PNG of `width`×80 pixels with a lit rectangle `from..to` columns wide.
    fn screenshot(width: u32, from: u32, to: u32) -> Picture {
        let pixels: Vec<u8> = (0..width * 80)
            .flat_map(|at| if (from..to).contains(&(at % width)) { [200; 3] } else { [0; 3] })
            .collect();
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, 80);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().expect("writes a header");
        writer.write_image_data(&pixels).expect("writes pixels");
        writer.finish().expect("ends");
        Picture::decode(&bytes).expect("reads its own picture")
    }

    fn is_up(look: &Observation) -> bool {
        matches!(look, Observation::Up(_))
    }

    #[test]
    fn a_dark_screen_is_never_evidence() {
        let mut screen = Screen::new(Duration::ZERO);
        for _ in 0..3 {
            assert!(!is_up(&screen.take(screenshot(64, 0, 0), None)));
        }
    }

    #[test]
    fn a_picture_that_came_and_stays_is_evidence() {
        let mut screen = Screen::new(Duration::ZERO);
        screen.take(screenshot(64, 0, 0), None);
        let look = screen.take(screenshot(64, 10, 60), None);
        let Observation::Up(Evidence::Screen { width, height, changes }) = look else {
            panic!("not taken for evidence")
        };
        assert_eq!((width, height, changes), (64, 80, 1));
    }

    #[test]
    fn a_boot_loader_that_stays_is_no_evidence_and_no_life_and_a_prompt_to_log_in_is() {
        let mut screen = Screen::new(Duration::ZERO);
        let mut lives = Vec::new();
        for _ in 0..3 {
            let loading = Some("SeaBIOS\n\nBooting from Hard Disk...\n");
            match screen.take(screenshot(64, 10, 60), loading) {
                Observation::Waiting { life, .. } => lives.push(life),
                Observation::Up(evidence) => panic!("{evidence:?}"),
            }
        }
        lives.dedup();
        assert_eq!(lives.len(), 1);
        assert!(is_up(&screen.take(screenshot(64, 10, 60), Some("l1 login:\n"))));
    }

    #[test]
    fn a_picture_that_still_changes_is_life_and_no_evidence() {
        let mut screen = Screen::new(Duration::MAX / UNCHANGED_FACTOR);
        let mut lives = Vec::new();
        for to in [20, 40, 60] {
            match screen.take(screenshot(64, 10, to), None) {
                Observation::Waiting { life, .. } => lives.push(life),
                Observation::Up(evidence) => panic!("{evidence:?}"),
            }
        }
        lives.dedup();
        assert_eq!(lives.len(), 3);
    }

    #[test]
    fn a_blinking_cursor_is_no_change_and_another_resolution_is() {
        let base = screenshot(640, 100, 600);
        let mut blinked = base.clone();
        blinked.cells[5] = blinked.cells[5].wrapping_add(20);
        assert!(!base.differs(&blinked));
        assert!(base.differs(&screenshot(800, 100, 600)));
    }

    #[test]
    fn what_is_not_a_picture_is_an_error() {
        assert!(Picture::decode(b"<html>").is_err());
        assert!(Picture::decode(&[]).is_err());
    }
}
