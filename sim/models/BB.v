// Model of the ECP5's pad in both directions.

module BB (
    input  I,
    input  T,
    output O,
    inout  B
);
    assign B = T ? 1'bz : I;
    assign O = B;
endmodule
