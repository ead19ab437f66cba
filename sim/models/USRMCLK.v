// Model of the ECP5's way to the pin that clocks its configuration flash. The pin is `MCLK`; the cell
// has no port for it.

module USRMCLK (
    input USRMCLKI,
    input USRMCLKTS  // 1 lets the pin float; a pull-down rests it
);
    wire MCLK = USRMCLKI & ~USRMCLKTS;
endmodule
