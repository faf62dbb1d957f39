//! What the attribute reads in a function's signature, and the sentences with which it refuses one.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{
    Error, FnArg, GenericArgument, Ident, ItemFn, Lifetime, Pat, PatType, PathArguments, Result,
    ReturnType, Token, Type, TypeImplTrait, TypeReference,
};

/// serde encodes tuples of up to 16.
const MOST_ARGUMENTS: usize = 16;

/// A function that can be a task.
pub(crate) struct Signature<'a> {
    pub(crate) arguments: Vec<Argument<'a>>,
    pub(crate) output: Type,
}

/// One of its arguments.
pub(crate) struct Argument<'a> {
    /// Its name, for messages.
    pub(crate) name: String,
    /// Its type as the function has it.
    pub(crate) written: &'a Type,
    /// The type that travels: the same, or what owns it.
    pub(crate) owned: TokenStream,
    /// The variable that holds it in the worker.
    pub(crate) slot: Ident,
    /// How it is passed from there.
    pub(crate) passed: TokenStream,
}

/// Reads the item that the attribute stands on.
pub(crate) fn parse_function(tokens: TokenStream) -> Result<ItemFn> {
    let refuse = |tokens: &dyn ToTokens| {
        Error::new_spanned(tokens, "`#[errback::task]` goes above a function")
    };
    match syn::parse2(tokens.clone()) {
        Ok(syn::Item::Fn(function)) => Ok(function),
        Ok(other) => Err(refuse(&other)),
        // A method is no item, but a function is what it looks like: say what is wrong with it in particular.
        Err(error) => match syn::parse2::<syn::ImplItemFn>(tokens) {
            Ok(method) => Err(method.sig.receiver().map_or(error, refuse_receiver)),
            Err(_) => Err(error),
        },
    }
}

impl<'a> Signature<'a> {
    /// Reads it, or says all that is against it.
    pub(crate) fn check(function: &'a ItemFn) -> Result<Signature<'a>> {
        let sig = &function.sig;
        let mut refusals = Refusals::default();

        if let Some(token) = &sig.asyncness {
            refusals.add(token, "a task cannot be async: it has a process of its own, where it may block as it likes");
        }
        if let syn::Safety::Unsafe(token) = &sig.safety {
            refusals.add(token, "a task cannot be unsafe: nobody could keep its contract from another process; wrap it in a safe function");
        }
        if let Some(abi) = &sig.abi {
            refusals.add(
                abi,
                "a task is a Rust function: call the `extern` one from it",
            );
        }
        for parameter in &sig.generics.params {
            let sentence = match parameter {
                syn::GenericParam::Lifetime(_) => {
                    "a task has no lifetimes: write `&str` without a name for its lifetime"
                }
                _ => {
                    "a task cannot be generic: a worker finds it by its name alone; write one function for each type, which calls this one"
                }
            };
            refusals.add(parameter, sentence);
        }
        if sig.inputs.len() > MOST_ARGUMENTS {
            refusals.add(
                &sig.inputs,
                "a task takes 16 arguments at the most: put some of them into a struct",
            );
        }

        let arguments = sig.inputs.iter().enumerate();
        let arguments: Vec<_> = arguments
            .filter_map(|(at, input)| argument(at, input, &mut refusals))
            .collect();
        let output = match &sig.output {
            ReturnType::Default => syn::parse_quote!(()),
            ReturnType::Type(_, output) => {
                refusals.borrowed_result(output);
                (**output).clone()
            }
        };
        refusals.none()?;
        Ok(Signature { arguments, output })
    }

    /// `add(a: u64, b: u64)`, for messages.
    pub(crate) fn shown(&self, name: &Ident) -> TokenStream {
        let name = name.unraw().to_string();
        let arguments = self.arguments.iter().enumerate().map(|(at, argument)| {
            let comma = if at == 0 { "" } else { ", " };
            let (name, written) = (&argument.name, argument.written);
            quote!(#comma, #name, ": ", ::core::stringify!(#written),)
        });
        quote!(::core::concat!(#name, "(", #(#arguments)* ")"))
    }

    /// A word for the expansion when the error has a reference in it.
    pub(crate) fn borrowed_error(&self) -> Option<TokenStream> {
        let mut finder = HasReference(false);
        if let Some(arguments) = type_arguments(&self.output) {
            arguments
                .iter()
                .skip(1)
                .for_each(|argument| finder.visit_generic_argument(argument));
        }
        finder.0.then(|| quote!(borrowed))
    }

    /// The trait that tells a `Result` from a value, for this return type.
    pub(crate) fn returns(&self) -> TokenStream {
        let output = &self.output;
        quote_spanned! {output.span()=>
            <::errback::__private::Returned<{ ::errback::__private::ReturnType::<#output>::IS_RESULT }>
                as ::errback::__private::Returns<#output>>
        }
    }
}

fn argument<'a>(at: usize, input: &'a FnArg, refusals: &mut Refusals) -> Option<Argument<'a>> {
    let PatType { pat, ty, .. } = match input {
        FnArg::Typed(typed) => typed,
        FnArg::Receiver(receiver) => {
            refusals.push(refuse_receiver(receiver));
            return None;
        }
    };
    let name = match &**pat {
        Pat::Ident(pat) => pat.ident.unraw().to_string(),
        _ => at.to_string(),
    };
    let slot = format_ident!("__argument_{at}");
    let (owned, passed) = match &**ty {
        Type::Reference(reference) => {
            refusals.reference(reference);
            let lent = &reference.elem;
            let owned = quote_spanned!(ty.span()=> <#lent as ::std::borrow::ToOwned>::Owned);
            (
                owned,
                quote!(::core::borrow::Borrow::<#lent>::borrow(&#slot)),
            )
        }
        owned => {
            refusals.borrowed(owned, "a task's argument is owned, or borrowed as a whole (`&T`): what it holds cannot borrow");
            (quote!(#owned), quote!(#slot))
        }
    };
    Some(Argument {
        name,
        written: ty,
        owned,
        slot,
        passed,
    })
}

fn refuse_receiver(receiver: &syn::Receiver) -> Error {
    Error::new_spanned(
        receiver,
        "a method cannot be a task: make it a function outside of the `impl`, which takes the value as an argument",
    )
}

/// What is against a function, said all at once.
#[derive(Default)]
struct Refusals(Option<Error>);

impl Refusals {
    fn add(&mut self, tokens: impl ToTokens, sentence: &str) {
        self.push(Error::new_spanned(tokens, sentence));
    }

    fn push(&mut self, error: Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            None => self.0 = Some(error),
        }
    }

    fn none(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }

    /// An argument `&T`.
    fn reference(&mut self, reference: &TypeReference) {
        if let Some(mutability) = &reference.mutability {
            self.add(mutability, "a task cannot change its caller's value: it is in another process; take it by value and return what has changed");
        }
        if let Some(lifetime) = &reference.lifetime {
            self.add(lifetime, "a task borrows an argument for its own run, and no longer: write `&` without a lifetime");
        }
        self.borrowed(
            &reference.elem,
            "a task's argument may be borrowed as a whole (`&T`): what it holds cannot borrow",
        );
    }

    /// References, lifetimes and `impl Trait` anywhere inside of a type.
    fn borrowed(&mut self, ty: &Type, sentence: &'static str) {
        let mut finder = Finder {
            refusals: self,
            sentence,
            error: false,
        };
        finder.visit_type(ty);
    }

    /// The same in a return type. The `E` of a `Result<T, E>` need not travel, and may be a `&'static str`.
    fn borrowed_result(&mut self, ty: &Type) {
        let mut finder = Finder {
            refusals: self,
            sentence: "a task's result must be owned, to travel: return a `String` for a `&str`, a `Vec` for a slice",
            error: false,
        };
        match type_arguments(ty) {
            Some(arguments) if arguments.len() == 2 => {
                finder.visit_generic_argument(&arguments[0]);
                finder.error = true;
                finder.visit_generic_argument(&arguments[1]);
            }
            _ => finder.visit_type(ty),
        }
    }
}

/// What is between the angle brackets of a type.
fn type_arguments(ty: &Type) -> Option<&Punctuated<GenericArgument, Token![,]>> {
    let Type::Path(path) = ty else { return None };
    match &path.path.segments.last()?.arguments {
        PathArguments::AngleBracketed(arguments) => Some(&arguments.args),
        _ => None,
    }
}

struct Finder<'a> {
    refusals: &'a mut Refusals,
    sentence: &'static str,
    /// In the type of an error.
    error: bool,
}

impl Visit<'_> for Finder<'_> {
    fn visit_type_reference(&mut self, reference: &TypeReference) {
        let is_static = reference
            .lifetime
            .as_ref()
            .is_some_and(|lifetime| lifetime.ident == "static");
        if !(self.error && is_static) {
            self.refusals.add(reference, self.sentence);
        }
    }

    // Those of references do not come here. `Cow<'static, str>` is owned as far as serde cares.
    fn visit_lifetime(&mut self, lifetime: &Lifetime) {
        if lifetime.ident != "static" {
            self.refusals.add(lifetime, self.sentence);
        }
    }

    fn visit_type_impl_trait(&mut self, ty: &TypeImplTrait) {
        let sentence = "a task's types have names, so that both sides mean the same: write the type for `impl`";
        self.refusals.add(ty, sentence);
    }
}

struct HasReference(bool);

impl Visit<'_> for HasReference {
    fn visit_type_reference(&mut self, _: &TypeReference) {
        self.0 = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said against a function.
    #[track_caller]
    fn refused(function: &str) -> String {
        let tokens = function.parse().expect("tokens");
        let refusal = match parse_function(tokens) {
            Ok(function) => match Signature::check(&function) {
                Ok(_) => panic!(
                    "`{function:?}` was taken",
                    function = function.sig.ident.to_string()
                ),
                Err(refusal) => refusal,
            },
            Err(refusal) => refusal,
        };
        let sentences: Vec<_> = refusal.into_iter().map(|error| error.to_string()).collect();
        sentences.join("\n")
    }

    #[test]
    fn what_cannot_be_a_task_is_refused_with_a_sentence() {
        for (function, sentence) in [
            ("fn f<T>(value: T) {}", "cannot be generic"),
            (
                "fn f<'a>(text: &'a str) {}",
                "write `&str` without a name for its lifetime",
            ),
            ("async fn f() {}", "cannot be async"),
            ("unsafe fn f() {}", "cannot be unsafe"),
            ("extern \"C\" fn f() {}", "a Rust function"),
            ("fn f(&self) {}", "a method cannot be a task"),
            ("fn f(value: impl ToString) {}", "write the type for `impl`"),
            ("fn f() -> impl ToString {}", "write the type for `impl`"),
            ("fn f(value: &mut u8) {}", "return what has changed"),
            ("fn f(value: &'static u8) {}", "without a lifetime"),
            ("fn f(value: Option<&u8>) {}", "what it holds cannot borrow"),
            ("fn f(value: &[&u8]) {}", "what it holds cannot borrow"),
            (
                "fn f(value: Cow<'_, str>) {}",
                "what it holds cannot borrow",
            ),
            ("fn f() -> &'static str {}", "a task's result must be owned"),
            (
                "fn f() -> Result<&'static str, u8> {}",
                "a task's result must be owned",
            ),
            ("struct F;", "goes above a function"),
        ] {
            let said = refused(function);
            assert!(said.contains(sentence), "{function}: {said}");
        }
        let many = format!("fn f({}) {{}}", "_: u8, ".repeat(17));
        assert!(refused(&many).contains("16 arguments at the most"));
    }

    #[test]
    fn all_that_is_against_a_function_is_said_at_once() {
        assert_eq!(
            refused("async unsafe fn f<T>(value: &mut T) -> &T {}")
                .lines()
                .count(),
            5
        );
    }

    #[test]
    fn an_argument_is_lent_where_the_function_borrows_it() {
        let function =
            syn::parse_str("fn f(text: &str, (a, b): (u8, u8), _: Cow<'static, str>) {}")
                .expect("a function");
        let signature = Signature::check(&function).expect("a task");
        let names: Vec<_> = signature
            .arguments
            .iter()
            .map(|argument| argument.name.as_str())
            .collect();
        assert_eq!(names, ["text", "1", "2"]);
        let owned = signature.arguments[0].owned.to_string();
        assert_eq!(owned, "< str as :: std :: borrow :: ToOwned > :: Owned");
        assert_eq!(signature.arguments[1].owned.to_string(), "(u8 , u8)");
    }
}
