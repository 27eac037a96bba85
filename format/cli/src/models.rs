//! Models for the whole run, each found and loaded once.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

use image_sdl::{BundleRef, Decoder, Model, Settings};

use crate::failure::Failure;

pub(crate) struct Models {
    settings: Settings,
    found: Mutex<HashMap<BundleRef, Model>>,
}

impl Models {
    pub fn new(settings: Settings) -> Self {
        Models { settings, found: Mutex::default() }
    }

    /// The model that the user named; files that need it find it here, be it in a store or not.
    pub fn named(&self, name: &str) -> Result<Model, Failure> {
        let model = Model::find(name, self.settings.clone())?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(model.reference(), model.clone());
        Ok(model)
    }

    /// The model that a file names.
    pub fn for_file<R: Read>(&self, decoder: &mut Decoder<R>) -> Result<Model, Failure> {
        let reference = decoder.header().bundle;
        // Held while it is looked for: two files must not open the same bundle twice.
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = found.get(&reference) {
            return Ok(model.clone());
        }
        let model = decoder.find_model(self.settings.clone())?;
        found.insert(reference, model.clone());
        Ok(model)
    }
}
