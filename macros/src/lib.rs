//! The attribute that makes a task of a function, for the crate `errback`, which re-exports it as `errback::task`.
//!
//! It sees tokens and no types. So it refuses here what can be refused by looking (generics, methods, borrowed results)
//! with a sentence at the right place, and leaves to the compiler what only types can tell: whether the return type is
//! a `Result`, and whether its error can travel. `errback`'s `task/expansion.rs` is the other half.

mod signature;

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{Attribute, ItemFn, LitStr, Result};

use signature::Signature;

/// Makes a task of a function: it can then run in a worker process, by `defer_to_process` or a pool.
///
/// The function's name becomes a value that implements `errback::Task` and can still be called. Its arguments and its
/// result travel as serde types: arguments implement `Serialize` and `Deserialize`, and so does what it returns. When
/// it returns a `Result`, an `Err` becomes the failure on the other side; an error type that implements `Serialize`,
/// `Deserialize`, `Display` and `Debug` arrives as itself, any other as an `errback::RemoteError` with its words.
///
/// ```
/// /// The primes in `from..to`.
/// #[errback::task]
/// fn count_primes(from: u64, to: u64) -> usize {
///     (from.max(2)..to).filter(|n| (2..*n).all(|d| n % d != 0)).count()
/// }
///
/// #[errback::task(name = "text.parse")]
/// fn parse(text: &str) -> Result<f64, String> {
///     text.trim().parse().map_err(|_| format!("{text:?} is not a number"))
/// }
///
/// assert_eq!(count_primes(1, 10), 4);
/// assert_eq!(parse(" 2.5 "), Ok(2.5));
/// ```
///
/// One thing changes: a local variable cannot have the name of a task that is in scope, as it cannot have that of a
/// constant.
///
/// An argument may be taken as `&T`: the worker then owns the value and lends it, and the caller gives the owned form
/// (`String` for `&str`, `Vec<T>` for `&[T]`).
///
/// # Options
/// `name = "…"`: the name by which workers find it, in place of the function's path. It must be the only one of its
/// name in the program.
///
/// `explicit`: the task is not entered in the table that the linker makes, and the expansion has no `unsafe` in it.
/// (The lint `unsafe_code`, denied or forbidden, accepts either form: it does not look into other crates' macros.) The
/// program lists such tasks in `errback::worker::run_if_worker`.
///
/// # Refused
/// Generic, `async` and `unsafe` functions, methods, results that borrow, and more than 16 arguments.
#[proc_macro_attribute]
pub fn task(
    options: proc_macro::TokenStream,
    function: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    let original = TokenStream::from(function.clone());
    let expanded = (|| {
        let options = Options::parse(options)?;
        let function = signature::parse_function(function.into())?;
        let signature = Signature::check(&function)?;
        Ok(expand(&options, &function, &signature))
    })();
    match expanded {
        Ok(tokens) => tokens.into(),
        Err(error) => {
            // The function as it was, so that one mistake does not become ten messages about a name that is missing.
            let error: TokenStream = syn::Error::to_compile_error(&error);
            quote!(#error #original).into()
        }
    }
}

/// What stands in the parentheses of the attribute.
#[derive(Default)]
struct Options {
    name: Option<LitStr>,
    explicit: bool,
}

impl Options {
    fn parse(tokens: proc_macro::TokenStream) -> Result<Options> {
        let mut options = Options::default();
        let parser = syn::meta::parser(|meta| options.option(&meta));
        syn::parse::Parser::parse(parser, tokens)?;
        Ok(options)
    }

    fn option(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        if meta.path.is_ident("explicit") {
            self.explicit = true;
            return Ok(());
        }
        if meta.path.is_ident("name") {
            let name: LitStr = meta.value()?.parse()?;
            if name.value().is_empty() {
                return Err(syn::Error::new(
                    name.span(),
                    "a task's name cannot be empty",
                ));
            }
            if name.value().starts_with("errback.") {
                return Err(syn::Error::new(
                    name.span(),
                    "names that begin with `errback.` are taken",
                ));
            }
            self.name = Some(name);
            return Ok(());
        }
        Err(meta.error("a task's options are `name = \"…\"` and `explicit`"))
    }
}

fn expand(options: &Options, function: &ItemFn, signature: &Signature<'_>) -> TokenStream {
    let Attributes {
        outside,
        inside,
        cfgs,
    } = Attributes::sort(&function.attrs);
    let vis = &function.vis;
    let name = &function.sig.ident;
    let deref = deref(function, signature);
    let run = run(function, signature);
    let task = implementation(function, signature);
    let entry = entry(options, function);
    let sig = &function.sig;
    let body = &function.block;

    quote! {
        #(#outside)*
        #[allow(non_camel_case_types)]
        #[derive(::core::clone::Clone, ::core::marker::Copy)]
        #vis struct #name;

        #(#cfgs)*
        #[allow(deprecated)]
        const _: () = {
            #[allow(unused_imports)]
            use ::errback::__private::{
                DescribeAny as _, DescribeAnyhow as _, DescribeDebug as _, DescribeError as _, DescribeHolder as _,
                DescribeSendHolder as _, DescribeShared as _, DescribeText as _, NoResult as _, TravelError as _,
                TravelNot as _, TravelText as _,
            };

            // In here the name means the function, so that it calls itself and not the value that stands for it.
            #(#inside)*
            #sig #body

            #deref
            #run
            #entry
            #task
        };
    }
}

/// Makes the value callable, by a pointer to the function.
fn deref(function: &ItemFn, signature: &Signature<'_>) -> TokenStream {
    let name = &function.sig.ident;
    let types: Vec<_> = signature
        .arguments
        .iter()
        .map(|argument| argument.written)
        .collect();
    let output = &function.sig.output;
    quote! {
        impl ::core::ops::Deref for #name {
            type Target = fn(#(#types),*) #output;

            fn deref(&self) -> &Self::Target {
                const __FUNCTION: fn(#(#types),*) #output = #name;
                &__FUNCTION
            }
        }
    }
}

// A variable in what follows could meet a task of the same name, which is a value that a pattern cannot shadow. So they
// all begin with underscores.

/// From bytes to bytes, in the worker.
fn run(function: &ItemFn, signature: &Signature<'_>) -> TokenStream {
    let name = &function.sig.ident;
    let shown = signature.shown(name);
    let taken = signature.arguments.len();
    let slots = signature.arguments.iter().map(|argument| &argument.slot);
    let read = signature.arguments.iter().map(|argument| {
        let (owned, name) = (&argument.owned, &argument.name);
        quote_spanned!(argument.written.span()=> __call.take::<#owned>(#shown, #name)?)
    });
    let passed = signature.arguments.iter().map(|argument| &argument.passed);
    let returns = signature.returns();
    let borrowed = signature.borrowed_error();
    let answer = quote_spanned!(signature.output.span()=> __call.answer(&__value));
    quote! {
        #[allow(unused_mut, unused_variables, unreachable_patterns, unreachable_code)]
        fn __run(
            __call: &mut ::errback::__private::Call<'_>,
        ) -> ::errback::__private::Ran {
            __call.expect(#shown, #taken)?;
            #(let #slots = #read;)*
            __call.begin();
            match #returns::split(#name(#(#passed),*)) {
                ::core::result::Result::Ok(__value) => #answer,
                ::core::result::Result::Err(__error) => {
                    ::core::result::Result::Err(::errback::__private::describe_error!(#borrowed #returns::Error, __error))
                }
            }
        }

        fn __run_all(__calls: &mut ::errback::__private::Calls<'_>) -> ::errback::__private::Ran {
            __calls.run(__run)
        }
    }
}

/// The host's side: how arguments and results are typed.
fn implementation(function: &ItemFn, signature: &Signature<'_>) -> TokenStream {
    let name = &function.sig.ident;
    let owned = signature.arguments.iter().map(|argument| &argument.owned);
    let returns = signature.returns();
    let borrowed = signature.borrowed_error();
    let decode = quote_spanned! {signature.output.span()=>
        ::errback::__private::decode_output::<Self::Output>(__bytes)
    };
    let decode_next = quote_spanned! {signature.output.span()=>
        ::errback::__private::decode_next::<Self::Output>(__values)
    };
    quote! {
        impl ::errback::Task for #name {
            type Args = (#(#owned,)*);
            type Output = #returns::Value;

            fn name(&self) -> &'static str {
                __ENTRY.name()
            }

            fn entry(&self) -> ::core::option::Option<&'static ::errback::__private::TaskEntry> {
                ::core::option::Option::Some(&__ENTRY)
            }

            fn decode_result(
                __bytes: &[u8],
            ) -> ::core::result::Result<Self::Output, ::errback::__private::DecodeError> {
                #decode
            }

            #[inline]
            fn decode_next(
                __values: &mut ::errback::__private::ValueReader<'_>,
            ) -> ::core::result::Result<Self::Output, ::errback::__private::DecodeError> {
                #decode_next
            }

            fn decode_error(__body: ::errback::__private::RemoteErrorBody) -> ::errback::__private::anyhow::Error {
                ::errback::__private::restore_error!(#borrowed #returns::Error, __body)
            }
        }
    }
}

/// The worker's table of tasks gets a line.
fn entry(options: &Options, function: &ItemFn) -> TokenStream {
    let name = &function.sig.ident;
    let task_name = match &options.name {
        Some(name) => quote!(#name),
        None => {
            // `r#match` is called `match`.
            let name = syn::ext::IdentExt::unraw(name).to_string();
            quote!(::core::concat!(::core::module_path!(), "::", #name))
        }
    };
    let linked = (!options.explicit).then(|| {
        quote! {
            #[::errback::__private::linkme::distributed_slice(::errback::__private::ERRBACK_TASKS_0_1)]
            #[linkme(crate = ::errback::__private::linkme)]
        }
    });
    quote! {
        #linked
        static __ENTRY: ::errback::__private::TaskEntry = ::errback::__private::TaskEntry::new(#task_name, __run, __run_all);
    }
}

/// Which attribute of the function goes where.
struct Attributes<'a> {
    /// On the type that takes over the function's name: what readers and users of the name see.
    outside: Vec<&'a Attribute>,
    /// On the function itself.
    inside: Vec<&'a Attribute>,
    /// On everything.
    cfgs: Vec<&'a Attribute>,
}

impl<'a> Attributes<'a> {
    fn sort(attributes: &'a [Attribute]) -> Attributes<'a> {
        let cfgs: Vec<_> = attributes
            .iter()
            .filter(|a| a.path().is_ident("cfg"))
            .collect();
        let (outside, inside) = attributes.iter().partition(|a| {
            ["doc", "deprecated", "cfg"]
                .iter()
                .any(|name| a.path().is_ident(name))
        });
        Attributes {
            outside,
            inside,
            cfgs,
        }
    }
}
