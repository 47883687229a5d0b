//! The allow-lists: mnemonics that are executed on the host.
//!
//! Each mnemonic is listed under the CPUID feature of its first form; forms of
//! later features (VEX.256 integer instructions, for example) have the same
//! mnemonic and the same nature. EVEX forms are excluded in
//! [`super::classify`], as are features the host lacks.

use iced_x86::Mnemonic;

/// MMX, SSE and AVX instructions that neither use nor change MXCSR: moves,
/// logic, shuffles, integer arithmetic, string comparison, cryptography.
#[rustfmt::skip]
pub(crate) fn is_exact_vector(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        // MMX
        Mnemonic::Punpcklbw | Mnemonic::Punpcklwd | Mnemonic::Punpckldq | Mnemonic::Packsswb
        | Mnemonic::Pcmpgtb | Mnemonic::Pcmpgtw | Mnemonic::Pcmpgtd | Mnemonic::Packuswb
        | Mnemonic::Punpckhbw | Mnemonic::Punpckhwd | Mnemonic::Punpckhdq
        | Mnemonic::Packssdw | Mnemonic::Movd | Mnemonic::Movq | Mnemonic::Psrlw
        | Mnemonic::Psraw | Mnemonic::Psllw | Mnemonic::Psrld | Mnemonic::Psrad
        | Mnemonic::Pslld | Mnemonic::Psrlq | Mnemonic::Psllq | Mnemonic::Pcmpeqb
        | Mnemonic::Pcmpeqw | Mnemonic::Pcmpeqd | Mnemonic::Paddq | Mnemonic::Pmullw
        | Mnemonic::Psubusb | Mnemonic::Psubusw | Mnemonic::Pand | Mnemonic::Paddusb
        | Mnemonic::Paddusw | Mnemonic::Pandn | Mnemonic::Pmulhw | Mnemonic::Psubsb
        | Mnemonic::Psubsw | Mnemonic::Por | Mnemonic::Paddsb | Mnemonic::Paddsw
        | Mnemonic::Pxor | Mnemonic::Pmaddwd | Mnemonic::Psubb | Mnemonic::Psubw
        | Mnemonic::Psubd | Mnemonic::Paddb | Mnemonic::Paddw | Mnemonic::Paddd
        // SSE
        | Mnemonic::Movups | Mnemonic::Movss | Mnemonic::Movhlps | Mnemonic::Movlps
        | Mnemonic::Unpcklps | Mnemonic::Unpckhps | Mnemonic::Movlhps | Mnemonic::Movhps
        | Mnemonic::Movaps | Mnemonic::Movntps | Mnemonic::Movmskps | Mnemonic::Andps
        | Mnemonic::Andnps | Mnemonic::Orps | Mnemonic::Xorps | Mnemonic::Pshufw
        | Mnemonic::Pinsrw | Mnemonic::Pextrw | Mnemonic::Shufps | Mnemonic::Pmovmskb
        | Mnemonic::Pminub | Mnemonic::Pmaxub | Mnemonic::Pavgb | Mnemonic::Pavgw
        | Mnemonic::Pmulhuw | Mnemonic::Movntq | Mnemonic::Pminsw | Mnemonic::Pmaxsw
        | Mnemonic::Psadbw
        // SSE2
        | Mnemonic::Movupd | Mnemonic::Movsd | Mnemonic::Movlpd | Mnemonic::Unpcklpd
        | Mnemonic::Unpckhpd | Mnemonic::Movhpd | Mnemonic::Movapd | Mnemonic::Movntpd
        | Mnemonic::Movmskpd | Mnemonic::Andpd | Mnemonic::Andnpd | Mnemonic::Orpd
        | Mnemonic::Xorpd | Mnemonic::Punpcklqdq | Mnemonic::Punpckhqdq | Mnemonic::Movdqa
        | Mnemonic::Movdqu | Mnemonic::Pshufd | Mnemonic::Pshufhw | Mnemonic::Pshuflw
        | Mnemonic::Psrldq | Mnemonic::Pslldq | Mnemonic::Shufpd | Mnemonic::Movq2dq
        | Mnemonic::Movdq2q | Mnemonic::Movntdq | Mnemonic::Pmuludq | Mnemonic::Psubq
        // SSE3
        | Mnemonic::Movsldup | Mnemonic::Movddup | Mnemonic::Movshdup | Mnemonic::Lddqu
        // SSSE3
        | Mnemonic::Pshufb | Mnemonic::Phaddw | Mnemonic::Phaddd | Mnemonic::Phaddsw
        | Mnemonic::Pmaddubsw | Mnemonic::Phsubw | Mnemonic::Phsubd | Mnemonic::Phsubsw
        | Mnemonic::Psignb | Mnemonic::Psignw | Mnemonic::Psignd | Mnemonic::Pmulhrsw
        | Mnemonic::Pabsb | Mnemonic::Pabsw | Mnemonic::Pabsd | Mnemonic::Palignr
        // SSE4.1
        | Mnemonic::Pblendvb | Mnemonic::Blendvps | Mnemonic::Blendvpd | Mnemonic::Ptest
        | Mnemonic::Pmovsxbw | Mnemonic::Pmovsxbd | Mnemonic::Pmovsxbq | Mnemonic::Pmovsxwd
        | Mnemonic::Pmovsxwq | Mnemonic::Pmovsxdq | Mnemonic::Pmuldq | Mnemonic::Pcmpeqq
        | Mnemonic::Movntdqa | Mnemonic::Packusdw | Mnemonic::Pmovzxbw | Mnemonic::Pmovzxbd
        | Mnemonic::Pmovzxbq | Mnemonic::Pmovzxwd | Mnemonic::Pmovzxwq | Mnemonic::Pmovzxdq
        | Mnemonic::Pminsb | Mnemonic::Pminsd | Mnemonic::Pminuw | Mnemonic::Pminud
        | Mnemonic::Pmaxsb | Mnemonic::Pmaxsd | Mnemonic::Pmaxuw | Mnemonic::Pmaxud
        | Mnemonic::Pmulld | Mnemonic::Phminposuw | Mnemonic::Blendps | Mnemonic::Blendpd
        | Mnemonic::Pblendw | Mnemonic::Pextrb | Mnemonic::Pextrd | Mnemonic::Pextrq
        | Mnemonic::Extractps | Mnemonic::Pinsrb | Mnemonic::Insertps | Mnemonic::Pinsrd
        | Mnemonic::Pinsrq | Mnemonic::Mpsadbw
        // SSE4.2
        | Mnemonic::Pcmpgtq | Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64
        | Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64 | Mnemonic::Pcmpistrm
        | Mnemonic::Pcmpistri
        // AES
        | Mnemonic::Aesimc | Mnemonic::Aesenc | Mnemonic::Aesenclast | Mnemonic::Aesdec
        | Mnemonic::Aesdeclast | Mnemonic::Aeskeygenassist
        // PCLMULQDQ
        | Mnemonic::Pclmulqdq
        // SHA
        | Mnemonic::Sha1nexte | Mnemonic::Sha1msg1 | Mnemonic::Sha1msg2
        | Mnemonic::Sha256rnds2 | Mnemonic::Sha256msg1 | Mnemonic::Sha256msg2
        | Mnemonic::Sha1rnds4
        // AVX
        | Mnemonic::Vmovups | Mnemonic::Vmovupd | Mnemonic::Vmovss | Mnemonic::Vmovsd
        | Mnemonic::Vmovhlps | Mnemonic::Vmovlps | Mnemonic::Vmovlpd | Mnemonic::Vmovsldup
        | Mnemonic::Vmovddup | Mnemonic::Vunpcklps | Mnemonic::Vunpcklpd
        | Mnemonic::Vunpckhps | Mnemonic::Vunpckhpd | Mnemonic::Vmovlhps | Mnemonic::Vmovhps
        | Mnemonic::Vmovhpd | Mnemonic::Vmovshdup | Mnemonic::Vmovaps | Mnemonic::Vmovapd
        | Mnemonic::Vmovntps | Mnemonic::Vmovntpd | Mnemonic::Vmovmskps | Mnemonic::Vmovmskpd
        | Mnemonic::Vandps | Mnemonic::Vandpd | Mnemonic::Vandnps | Mnemonic::Vandnpd
        | Mnemonic::Vorps | Mnemonic::Vorpd | Mnemonic::Vxorps | Mnemonic::Vxorpd
        | Mnemonic::Vpunpcklbw | Mnemonic::Vpunpcklwd | Mnemonic::Vpunpckldq
        | Mnemonic::Vpacksswb | Mnemonic::Vpcmpgtb | Mnemonic::Vpcmpgtw | Mnemonic::Vpcmpgtd
        | Mnemonic::Vpackuswb | Mnemonic::Vpunpckhbw | Mnemonic::Vpunpckhwd
        | Mnemonic::Vpunpckhdq | Mnemonic::Vpackssdw | Mnemonic::Vpunpcklqdq
        | Mnemonic::Vpunpckhqdq | Mnemonic::Vmovd | Mnemonic::Vmovq | Mnemonic::Vmovdqa
        | Mnemonic::Vmovdqu | Mnemonic::Vpshufd | Mnemonic::Vpshufhw | Mnemonic::Vpshuflw
        | Mnemonic::Vpsrlw | Mnemonic::Vpsraw | Mnemonic::Vpsllw | Mnemonic::Vpsrld
        | Mnemonic::Vpsrad | Mnemonic::Vpslld | Mnemonic::Vpsrlq | Mnemonic::Vpsrldq
        | Mnemonic::Vpsllq | Mnemonic::Vpslldq | Mnemonic::Vpcmpeqb | Mnemonic::Vpcmpeqw
        | Mnemonic::Vpcmpeqd | Mnemonic::Vpinsrw | Mnemonic::Vpextrw | Mnemonic::Vshufps
        | Mnemonic::Vshufpd | Mnemonic::Vpaddq | Mnemonic::Vpmullw | Mnemonic::Vpmovmskb
        | Mnemonic::Vpsubusb | Mnemonic::Vpsubusw | Mnemonic::Vpminub | Mnemonic::Vpand
        | Mnemonic::Vpaddusb | Mnemonic::Vpaddusw | Mnemonic::Vpmaxub | Mnemonic::Vpandn
        | Mnemonic::Vpavgb | Mnemonic::Vpavgw | Mnemonic::Vpmulhuw | Mnemonic::Vpmulhw
        | Mnemonic::Vmovntdq | Mnemonic::Vpsubsb | Mnemonic::Vpsubsw | Mnemonic::Vpminsw
        | Mnemonic::Vpor | Mnemonic::Vpaddsb | Mnemonic::Vpaddsw | Mnemonic::Vpmaxsw
        | Mnemonic::Vpxor | Mnemonic::Vlddqu | Mnemonic::Vpmuludq | Mnemonic::Vpmaddwd
        | Mnemonic::Vpsadbw | Mnemonic::Vpsubb | Mnemonic::Vpsubw | Mnemonic::Vpsubd
        | Mnemonic::Vpsubq | Mnemonic::Vpaddb | Mnemonic::Vpaddw | Mnemonic::Vpaddd
        | Mnemonic::Vpshufb | Mnemonic::Vphaddw | Mnemonic::Vphaddd | Mnemonic::Vphaddsw
        | Mnemonic::Vpmaddubsw | Mnemonic::Vphsubw | Mnemonic::Vphsubd | Mnemonic::Vphsubsw
        | Mnemonic::Vpsignb | Mnemonic::Vpsignw | Mnemonic::Vpsignd | Mnemonic::Vpmulhrsw
        | Mnemonic::Vpermilps | Mnemonic::Vpermilpd | Mnemonic::Vtestps | Mnemonic::Vtestpd
        | Mnemonic::Vptest | Mnemonic::Vbroadcastss | Mnemonic::Vbroadcastsd
        | Mnemonic::Vbroadcastf128 | Mnemonic::Vpabsb | Mnemonic::Vpabsw | Mnemonic::Vpabsd
        | Mnemonic::Vpmovsxbw | Mnemonic::Vpmovsxbd | Mnemonic::Vpmovsxbq
        | Mnemonic::Vpmovsxwd | Mnemonic::Vpmovsxwq | Mnemonic::Vpmovsxdq | Mnemonic::Vpmuldq
        | Mnemonic::Vpcmpeqq | Mnemonic::Vmovntdqa | Mnemonic::Vpackusdw
        | Mnemonic::Vpmovzxbw | Mnemonic::Vpmovzxbd | Mnemonic::Vpmovzxbq
        | Mnemonic::Vpmovzxwd | Mnemonic::Vpmovzxwq | Mnemonic::Vpmovzxdq
        | Mnemonic::Vpcmpgtq | Mnemonic::Vpminsb | Mnemonic::Vpminsd | Mnemonic::Vpminuw
        | Mnemonic::Vpminud | Mnemonic::Vpmaxsb | Mnemonic::Vpmaxsd | Mnemonic::Vpmaxuw
        | Mnemonic::Vpmaxud | Mnemonic::Vpmulld | Mnemonic::Vphminposuw
        | Mnemonic::Vperm2f128 | Mnemonic::Vblendps | Mnemonic::Vblendpd | Mnemonic::Vpblendw
        | Mnemonic::Vpalignr | Mnemonic::Vpextrb | Mnemonic::Vpextrd | Mnemonic::Vpextrq
        | Mnemonic::Vextractps | Mnemonic::Vinsertf128 | Mnemonic::Vextractf128
        | Mnemonic::Vpinsrb | Mnemonic::Vinsertps | Mnemonic::Vpinsrd | Mnemonic::Vpinsrq
        | Mnemonic::Vmpsadbw | Mnemonic::Vblendvps | Mnemonic::Vblendvpd
        | Mnemonic::Vpblendvb | Mnemonic::Vpcmpestrm | Mnemonic::Vpcmpestrm64
        | Mnemonic::Vpcmpestri | Mnemonic::Vpcmpestri64 | Mnemonic::Vpcmpistrm
        | Mnemonic::Vpcmpistri
        // AVX2
        | Mnemonic::Vpermps | Mnemonic::Vpermd | Mnemonic::Vpsrlvd | Mnemonic::Vpsrlvq
        | Mnemonic::Vpsravd | Mnemonic::Vpsllvd | Mnemonic::Vpsllvq | Mnemonic::Vpbroadcastd
        | Mnemonic::Vpbroadcastq | Mnemonic::Vbroadcasti128 | Mnemonic::Vpbroadcastb
        | Mnemonic::Vpbroadcastw | Mnemonic::Vpermq | Mnemonic::Vpermpd | Mnemonic::Vpblendd
        | Mnemonic::Vinserti128 | Mnemonic::Vextracti128 | Mnemonic::Vperm2i128
        // AES and AVX
        | Mnemonic::Vaesimc | Mnemonic::Vaesenc | Mnemonic::Vaesenclast | Mnemonic::Vaesdec
        | Mnemonic::Vaesdeclast | Mnemonic::Vaeskeygenassist
        // PCLMULQDQ and AVX
        | Mnemonic::Vpclmulqdq
    )
}

/// SSE and AVX instructions whose result depends on MXCSR, or that set its
/// exception flags. The approximations are here because they flush denormals.
#[rustfmt::skip]
pub(crate) fn is_float_vector(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        // SSE
        Mnemonic::Cvtpi2ps | Mnemonic::Cvtsi2ss | Mnemonic::Cvttps2pi | Mnemonic::Cvttss2si
        | Mnemonic::Cvtps2pi | Mnemonic::Cvtss2si | Mnemonic::Ucomiss | Mnemonic::Comiss
        | Mnemonic::Sqrtps | Mnemonic::Sqrtss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss
        | Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Addps | Mnemonic::Addss
        | Mnemonic::Mulps | Mnemonic::Mulss | Mnemonic::Subps | Mnemonic::Subss
        | Mnemonic::Minps | Mnemonic::Minss | Mnemonic::Divps | Mnemonic::Divss
        | Mnemonic::Maxps | Mnemonic::Maxss | Mnemonic::Cmpps | Mnemonic::Cmpss
        // SSE2
        | Mnemonic::Cvtpi2pd | Mnemonic::Cvtsi2sd | Mnemonic::Cvttpd2pi | Mnemonic::Cvttsd2si
        | Mnemonic::Cvtpd2pi | Mnemonic::Cvtsd2si | Mnemonic::Ucomisd | Mnemonic::Comisd
        | Mnemonic::Sqrtpd | Mnemonic::Sqrtsd | Mnemonic::Addpd | Mnemonic::Addsd
        | Mnemonic::Mulpd | Mnemonic::Mulsd | Mnemonic::Cvtps2pd | Mnemonic::Cvtpd2ps
        | Mnemonic::Cvtss2sd | Mnemonic::Cvtsd2ss | Mnemonic::Cvtdq2ps | Mnemonic::Cvtps2dq
        | Mnemonic::Cvttps2dq | Mnemonic::Subpd | Mnemonic::Subsd | Mnemonic::Minpd
        | Mnemonic::Minsd | Mnemonic::Divpd | Mnemonic::Divsd | Mnemonic::Maxpd
        | Mnemonic::Maxsd | Mnemonic::Cmppd | Mnemonic::Cmpsd | Mnemonic::Cvttpd2dq
        | Mnemonic::Cvtdq2pd | Mnemonic::Cvtpd2dq
        // SSE3
        | Mnemonic::Haddpd | Mnemonic::Haddps | Mnemonic::Hsubpd | Mnemonic::Hsubps
        | Mnemonic::Addsubpd | Mnemonic::Addsubps
        // SSE4.1
        | Mnemonic::Roundps | Mnemonic::Roundpd | Mnemonic::Roundss | Mnemonic::Roundsd
        | Mnemonic::Dpps | Mnemonic::Dppd
        // AVX
        | Mnemonic::Vcvtsi2ss | Mnemonic::Vcvtsi2sd | Mnemonic::Vcvttss2si
        | Mnemonic::Vcvttsd2si | Mnemonic::Vcvtss2si | Mnemonic::Vcvtsd2si
        | Mnemonic::Vucomiss | Mnemonic::Vucomisd | Mnemonic::Vcomiss | Mnemonic::Vcomisd
        | Mnemonic::Vsqrtps | Mnemonic::Vsqrtpd | Mnemonic::Vsqrtss | Mnemonic::Vsqrtsd
        | Mnemonic::Vrsqrtps | Mnemonic::Vrsqrtss | Mnemonic::Vrcpps | Mnemonic::Vrcpss
        | Mnemonic::Vaddps | Mnemonic::Vaddpd | Mnemonic::Vaddss | Mnemonic::Vaddsd
        | Mnemonic::Vmulps | Mnemonic::Vmulpd | Mnemonic::Vmulss | Mnemonic::Vmulsd
        | Mnemonic::Vcvtps2pd | Mnemonic::Vcvtpd2ps | Mnemonic::Vcvtss2sd
        | Mnemonic::Vcvtsd2ss | Mnemonic::Vcvtdq2ps | Mnemonic::Vcvtps2dq
        | Mnemonic::Vcvttps2dq | Mnemonic::Vsubps | Mnemonic::Vsubpd | Mnemonic::Vsubss
        | Mnemonic::Vsubsd | Mnemonic::Vminps | Mnemonic::Vminpd | Mnemonic::Vminss
        | Mnemonic::Vminsd | Mnemonic::Vdivps | Mnemonic::Vdivpd | Mnemonic::Vdivss
        | Mnemonic::Vdivsd | Mnemonic::Vmaxps | Mnemonic::Vmaxpd | Mnemonic::Vmaxss
        | Mnemonic::Vmaxsd | Mnemonic::Vhaddpd | Mnemonic::Vhaddps | Mnemonic::Vhsubpd
        | Mnemonic::Vhsubps | Mnemonic::Vcmpps | Mnemonic::Vcmppd | Mnemonic::Vcmpss
        | Mnemonic::Vcmpsd | Mnemonic::Vaddsubpd | Mnemonic::Vaddsubps | Mnemonic::Vcvttpd2dq
        | Mnemonic::Vcvtdq2pd | Mnemonic::Vcvtpd2dq | Mnemonic::Vroundps | Mnemonic::Vroundpd
        | Mnemonic::Vroundss | Mnemonic::Vroundsd | Mnemonic::Vdpps | Mnemonic::Vdppd
        // FMA
        | Mnemonic::Vfmaddsub132ps | Mnemonic::Vfmaddsub132pd | Mnemonic::Vfmsubadd132ps
        | Mnemonic::Vfmsubadd132pd | Mnemonic::Vfmadd132ps | Mnemonic::Vfmadd132pd
        | Mnemonic::Vfmadd132ss | Mnemonic::Vfmadd132sd | Mnemonic::Vfmsub132ps
        | Mnemonic::Vfmsub132pd | Mnemonic::Vfmsub132ss | Mnemonic::Vfmsub132sd
        | Mnemonic::Vfnmadd132ps | Mnemonic::Vfnmadd132pd | Mnemonic::Vfnmadd132ss
        | Mnemonic::Vfnmadd132sd | Mnemonic::Vfnmsub132ps | Mnemonic::Vfnmsub132pd
        | Mnemonic::Vfnmsub132ss | Mnemonic::Vfnmsub132sd | Mnemonic::Vfmaddsub213ps
        | Mnemonic::Vfmaddsub213pd | Mnemonic::Vfmsubadd213ps | Mnemonic::Vfmsubadd213pd
        | Mnemonic::Vfmadd213ps | Mnemonic::Vfmadd213pd | Mnemonic::Vfmadd213ss
        | Mnemonic::Vfmadd213sd | Mnemonic::Vfmsub213ps | Mnemonic::Vfmsub213pd
        | Mnemonic::Vfmsub213ss | Mnemonic::Vfmsub213sd | Mnemonic::Vfnmadd213ps
        | Mnemonic::Vfnmadd213pd | Mnemonic::Vfnmadd213ss | Mnemonic::Vfnmadd213sd
        | Mnemonic::Vfnmsub213ps | Mnemonic::Vfnmsub213pd | Mnemonic::Vfnmsub213ss
        | Mnemonic::Vfnmsub213sd | Mnemonic::Vfmaddsub231ps | Mnemonic::Vfmaddsub231pd
        | Mnemonic::Vfmsubadd231ps | Mnemonic::Vfmsubadd231pd | Mnemonic::Vfmadd231ps
        | Mnemonic::Vfmadd231pd | Mnemonic::Vfmadd231ss | Mnemonic::Vfmadd231sd
        | Mnemonic::Vfmsub231ps | Mnemonic::Vfmsub231pd | Mnemonic::Vfmsub231ss
        | Mnemonic::Vfmsub231sd | Mnemonic::Vfnmadd231ps | Mnemonic::Vfnmadd231pd
        | Mnemonic::Vfnmadd231ss | Mnemonic::Vfnmadd231sd | Mnemonic::Vfnmsub231ps
        | Mnemonic::Vfnmsub231pd | Mnemonic::Vfnmsub231ss | Mnemonic::Vfnmsub231sd
        // F16C
        | Mnemonic::Vcvtph2ps | Mnemonic::Vcvtps2ph
    )
}

/// x87 instructions other than the control instructions of [`crate::control`].
#[rustfmt::skip]
pub(crate) fn is_x87_computation(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        // Basic and 387 and SSE3 and CMOV
        Mnemonic::Fadd | Mnemonic::Fmul | Mnemonic::Fcom | Mnemonic::Fcomp | Mnemonic::Fsub
        | Mnemonic::Fsubr | Mnemonic::Fdiv | Mnemonic::Fdivr | Mnemonic::Fld | Mnemonic::Fst
        | Mnemonic::Fstp | Mnemonic::Fxch | Mnemonic::Fnop | Mnemonic::Fstpnce
        | Mnemonic::Fchs | Mnemonic::Fabs | Mnemonic::Ftst | Mnemonic::Fxam | Mnemonic::Fld1
        | Mnemonic::Fldl2t | Mnemonic::Fldl2e | Mnemonic::Fldpi | Mnemonic::Fldlg2
        | Mnemonic::Fldln2 | Mnemonic::Fldz | Mnemonic::F2xm1 | Mnemonic::Fyl2x
        | Mnemonic::Fptan | Mnemonic::Fpatan | Mnemonic::Fxtract | Mnemonic::Fdecstp
        | Mnemonic::Fincstp | Mnemonic::Fprem | Mnemonic::Fyl2xp1 | Mnemonic::Fsqrt
        | Mnemonic::Frndint | Mnemonic::Fscale | Mnemonic::Fiadd | Mnemonic::Fimul
        | Mnemonic::Ficom | Mnemonic::Ficomp | Mnemonic::Fisub | Mnemonic::Fisubr
        | Mnemonic::Fidiv | Mnemonic::Fidivr | Mnemonic::Fild | Mnemonic::Fist
        | Mnemonic::Fistp | Mnemonic::Ffree | Mnemonic::Fucom | Mnemonic::Fucomp
        | Mnemonic::Faddp | Mnemonic::Fmulp | Mnemonic::Fcompp | Mnemonic::Fsubrp
        | Mnemonic::Fsubp | Mnemonic::Fdivrp | Mnemonic::Fdivp | Mnemonic::Fbld
        | Mnemonic::Fbstp | Mnemonic::Ffreep | Mnemonic::Fprem1 | Mnemonic::Fsincos
        | Mnemonic::Fsin | Mnemonic::Fcos | Mnemonic::Fucompp | Mnemonic::Fisttp
        | Mnemonic::Fcmovb | Mnemonic::Fcmove | Mnemonic::Fcmovbe | Mnemonic::Fcmovu
        | Mnemonic::Fcmovnb | Mnemonic::Fcmovne | Mnemonic::Fcmovnbe | Mnemonic::Fcmovnu
        | Mnemonic::Fcomi | Mnemonic::Fcomip | Mnemonic::Fucomi | Mnemonic::Fucomip
    )
}
