//! Errors as the socket tells them: `application/problem+json` (RFC 9457) with a stable code, what a person can do, and
//! whether it is worth trying again.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::machine::Refusal;

/// The media type.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// One error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:wechsler:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: Box<str>,
    /// The sentence that belongs to the code.
    pub title: Box<str>,
    /// The HTTP status.
    pub status: u16,
    /// What it is about this time.
    pub detail: Option<String>,
    /// Stable code.
    pub code: Box<str>,
    /// What a person can do.
    pub hint: Option<String>,
    /// The same request may succeed later.
    pub retryable: bool,
    /// When to try again, where that is known.
    pub retry_after_seconds: Option<u64>,
}

impl Problem {
    /// A problem that stays one when repeated.
    pub fn new(status: StatusCode, code: &str, title: impl Into<Box<str>>) -> Self {
        Self {
            kind: format!("urn:wechsler:problem:{code}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail: None,
            code: code.into(),
            hint: None,
            retryable: false,
            retry_after_seconds: None,
        }
    }

    /// A request that makes no sense: `detail` says where.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", "The request cannot be understood.").detail(detail)
    }

    /// The daemon has too much to do.
    pub fn overloaded(code: &str, title: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, title).retry_after(1)
    }

    /// A command refused by the machine.
    #[must_use]
    pub fn refused(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::NoSuchHold => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        };
        let problem = Self::new(status, refusal.code(), refusal.message()).hint(refusal.hint());
        Self { retryable: passes_by_itself(refusal), ..problem }
    }

    /// Says what it is about this time.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Says what a person can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Worth trying again after so many seconds.
    #[must_use]
    pub const fn retry_after(mut self, seconds: u64) -> Self {
        self.retryable = true;
        self.retry_after_seconds = Some(seconds);
        self
    }
}

/// Whether waiting alone can help. Exhaustive: a new refusal must be decided here.
const fn passes_by_itself(refusal: Refusal) -> bool {
    match refusal {
        Refusal::Busy
        | Refusal::TooLate
        | Refusal::ControlUnreachable
        | Refusal::Occupied
        | Refusal::Blocked
        | Refusal::Unknown => true,
        Refusal::SwitchNeeded
        | Refusal::Conflict
        | Refusal::NoConflict
        | Refusal::NotUp
        | Refusal::NotRunning
        | Refusal::NothingToCancel
        | Refusal::Held
        | Refusal::WakeUnarmed
        | Refusal::CannotWake
        | Refusal::NoSlots
        | Refusal::NothingSaved
        | Refusal::InUse
        | Refusal::TooManyHolds
        | Refusal::NoSuchHold
        | Refusal::UnitMissing => false,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = self.retry_after_seconds;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
